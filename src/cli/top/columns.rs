//! The lists' columns: which the console has, how wide they are here, and which are given up first where the screen is narrow. Pure.

/// A column of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// As the console calls it.
    pub name: &'static str,
    /// As it is headed here.
    pub title: &'static str,
    /// Characters; the last column takes what is left, and at least these.
    pub width: u16,
    /// 0 is never given up; the largest goes first.
    pub rank: u8,
    /// Aligned to the right, and sorted from the largest.
    pub is_figure: bool,
}

const fn text(name: &'static str, title: &'static str, width: u16, rank: u8) -> Column {
    Column { name, title, width, rank, is_figure: false }
}

const fn figure(name: &'static str, title: &'static str, width: u16, rank: u8) -> Column {
    Column { name, title, width, rank, is_figure: true }
}

/// Of SHOW LANES.
pub const LANES: &[Column] = &[
    text("lane", "LANE", 10, 0),
    text("state", "STATE", 8, 0),
    figure("slots", "SLOTS", 5, 0),
    figure("quota", "QUOTA", 5, 1),
    figure("active", "ACT", 4, 4),
    figure("idle", "IDLE", 4, 6),
    figure("idle_in_transaction", "IN TX", 5, 3),
    figure("waiting", "WAIT", 4, 2),
    figure("max_wait_ms", "MS", 6, 5),
    text("reason", "REASON", 10, 7),
];

/// Of SHOW CLIENTS.
pub const CLIENTS: &[Column] = &[
    figure("id", "ID", 6, 0),
    text("lane", "LANE", 8, 1),
    text("application", "APPLICATION", 12, 3),
    text("state", "STATE", 9, 0),
    figure("transaction_ms", "TX MS", 7, 2),
    figure("wait_ms", "WAITED", 6, 6),
    text("address", "ADDRESS", 15, 5),
    text("last_statement", "STATEMENT", 10, 4),
];

/// Of SHOW LEAKS.
pub const LEAKS: &[Column] = &[
    figure("id", "ID", 6, 0),
    text("lane", "LANE", 8, 1),
    figure("pid", "PID", 7, 4),
    figure("idle_in_transaction_ms", "IDLE MS", 8, 0),
    text("blocks", "BLOCKS", 9, 2),
    text("verdict", "VERDICT", 12, 3),
    text("last_statement", "STATEMENT", 12, 5),
];

/// Of SHOW TIMELINE.
pub const TIMELINE: &[Column] = &[
    text("at", "AT", 24, 2),
    text("event", "EVENT", 12, 0),
    text("lane", "LANE", 8, 3),
    text("who", "WHO", 12, 4),
    text("text", "TEXT", 10, 1),
];

/// Those that fit into `width` characters with one between each two, in their order.
pub fn fitting(columns: &[Column], width: u16) -> Vec<Column> {
    let mut kept = columns.to_vec();
    while kept.len() > 1 && needed(&kept) > width {
        let worst = kept.iter().enumerate().max_by_key(|(_, column)| column.rank).map_or(0, |(at, _)| at);
        kept.remove(worst);
    }
    kept
}

fn needed(columns: &[Column]) -> u16 {
    let widths: u16 = columns.iter().map(|column| column.width).sum();
    widths + u16::try_from(columns.len()).unwrap_or(u16::MAX).saturating_sub(1)
}
