//! What `pgweir top` knows and where the operator is in it: keys in, statements for the console out. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::columns::{CLIENTS, Column, LANES, LEAKS, TIMELINE};
use crate::cli::sql;
use crate::cli::table::{Table, printable};
use crate::cli::verdict::{Facts, Finding, judge};

/// Characters of a reason or duration that are taken.
const INPUT_MAX: usize = 200;
/// Rows that PageUp and PageDown move by.
const PAGE: usize = 10;

/// What is in the middle of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tab {
    /// SHOW LANES.
    #[default]
    Lanes,
    /// SHOW CLIENTS.
    Clients,
    /// SHOW LEAKS.
    Leaks,
    /// SHOW TIMELINE, newest first.
    Timeline,
}

impl Tab {
    /// In the order of their keys, 1 to 4.
    pub const ALL: [Self; 4] = [Self::Lanes, Self::Clients, Self::Leaks, Self::Timeline];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lanes => "Lanes",
            Self::Clients => "Clients",
            Self::Leaks => "Leaks",
            Self::Timeline => "Timeline",
        }
    }

    /// Its columns.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Lanes => LANES,
            Self::Clients => CLIENTS,
            Self::Leaks => LEAKS,
            Self::Timeline => TIMELINE,
        }
    }
}

/// A key, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the keys")]
pub enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Interrupt,
}

/// What the shell is to do about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Ask the console again, now.
    Refresh,
    /// Have it carry these out, one after the other.
    Carry(Vec<String>),
}

/// All answers of one look.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// SHOW USAGE.
    pub usage: Table,
    /// SHOW LANES.
    pub lanes: Table,
    /// SHOW CLIENTS; only where it is looked at.
    pub clients: Table,
    /// SHOW LEAKS.
    pub leaks: Table,
    /// The end of SHOW TIMELINE.
    pub timeline: Table,
    /// SHOW STATUS.
    pub status: BTreeMap<String, String>,
}

impl Data {
    /// What is to be said of it, worst first.
    pub fn findings(&self) -> Vec<Finding> {
        judge(&Facts::read(&self.usage, &self.lanes, &self.status))
    }
}

/// Something an operator can do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// PAUSE LANE.
    Pause(String),
    /// RESUME LANE.
    Resume(String),
    /// FREEZE.
    Freeze,
    /// RESUME ALL.
    ResumeAll,
    /// RESET CLIENT.
    Reset(String),
}

impl Deed {
    /// What it is called.
    pub fn title(&self) -> String {
        match self {
            Self::Pause(lane) => format!("Pause lane {lane}"),
            Self::Resume(lane) => format!("Resume lane {lane}"),
            Self::Freeze => "Freeze".to_owned(),
            Self::ResumeAll => "Resume all lanes".to_owned(),
            Self::Reset(id) => format!("Reset client {id}"),
        }
    }

    /// What will happen.
    pub fn consequence(&self) -> &'static str {
        match self {
            Self::Pause(_) => {
                "New connections and transactions of the lane are held or refused; those running finish."
            }
            Self::Resume(_) | Self::ResumeAll => "Those who wait go on; step by step where a time is given.",
            Self::Freeze => "Every lane marked freeze = true is paused.",
            Self::Reset(_) => {
                "Its idle transaction is rolled back, or the client disconnected, as its lane says."
            }
        }
    }

    fn takes_time(&self) -> bool {
        matches!(self, Self::Resume(_) | Self::ResumeAll)
    }

    /// The statements for it. Where the console's command takes no reason, the reason is noted first.
    fn statements(&self, reason: &str, over: &str) -> Vec<String> {
        let said = |command: String| match reason {
            "" => vec![command],
            reason => vec![format!("{command} REASON {}", sql::literal(reason))],
        };
        let noted = |command: String| match reason {
            "" => vec![command],
            reason => vec![format!("NOTE {}", sql::literal(&format!("{}: {reason}", self.title()))), command],
        };
        let over = if over.is_empty() { String::new() } else { format!(" OVER {}", sql::literal(over)) };
        match self {
            Self::Pause(lane) => said(format!("PAUSE LANE {}", sql::name(lane))),
            Self::Freeze => said("FREEZE".to_owned()),
            Self::Resume(lane) => noted(format!("RESUME LANE {}{over}", sql::name(lane))),
            Self::ResumeAll => noted(format!("RESUME ALL{over}")),
            Self::Reset(id) => noted(format!("RESET CLIENT {id}")),
        }
    }
}

/// What is asked before a deed is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// How long a resume may take; empty is at once.
    Over,
    /// Why.
    Reason,
    /// Whether to do it.
    Sure,
}

/// A deed on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialog {
    /// Which.
    pub deed: Deed,
    /// What is asked now.
    pub question: Question,
    /// Answers so far.
    pub over: String,
    /// The same.
    pub reason: String,
}

/// How things are sorted in a tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Which of the tab's columns; none is the console's order.
    pub column: Option<usize>,
    /// The largest first.
    pub descending: bool,
}

/// Everything the screen shows.
#[derive(Clone, Debug)]
pub struct Model {
    /// The last answers; none before the first.
    pub data: Option<Data>,
    /// Why there were none since, and for how many looks.
    pub lost: Option<(String, u64)>,
    /// Which list is shown.
    pub tab: Tab,
    /// By tab.
    pub sorts: [Sort; 4],
    /// The row chosen, by tab.
    pub chosen: [usize; 4],
    /// A deed on its way.
    pub dialog: Option<Dialog>,
    /// What the console said last.
    pub message: String,
    /// Whether the keys are explained.
    pub help: bool,
}

impl Default for Model {
    fn default() -> Self {
        let none = Sort { column: None, descending: false };
        Self {
            data: None,
            lost: None,
            tab: Tab::default(),
            sorts: [
                none,
                none,
                Sort { column: Some(3), descending: true },
                Sort { column: Some(0), descending: true },
            ],
            chosen: [0; 4],
            dialog: None,
            message: String::new(),
            help: false,
        }
    }
}

impl Model {
    /// The console answered.
    pub fn answered(&mut self, data: Data) {
        let clients = self.data.take().map(|old| old.clients);
        self.data = Some(data);
        if let (Some(data), Some(old)) = (&mut self.data, clients)
            && data.clients.names.is_empty()
        {
            data.clients = old;
        }
        self.lost = None;
    }

    /// It did not.
    pub fn failed(&mut self, why: String) {
        let times = self.lost.as_ref().map_or(1, |(_, times)| times + 1);
        self.lost = Some((why, times));
    }

    /// The rows of the list shown, sorted: their places in its table.
    pub fn order(&self) -> Vec<usize> {
        let Some(table) = self.table() else { return Vec::new() };
        let mut order: Vec<usize> = (0..table.rows.len()).collect();
        let Sort { column, descending } = self.sorts[self.tab as usize];
        if let Some(column) = column.and_then(|at| self.tab.columns().get(at)) {
            let cell = |row: usize| table.get(row, column.name).unwrap_or("");
            order.sort_by(|a, b| {
                let order = compare(cell(*a), cell(*b));
                if descending { order.reverse() } else { order }
            });
        }
        order
    }

    /// The table of the list shown.
    pub fn table(&self) -> Option<&Table> {
        let data = self.data.as_ref()?;
        Some(match self.tab {
            Tab::Lanes => &data.lanes,
            Tab::Clients => &data.clients,
            Tab::Leaks => &data.leaks,
            Tab::Timeline => &data.timeline,
        })
    }

    /// Which row is chosen: its place on the list.
    pub fn chosen_row(&self) -> usize {
        let len = self.table().map_or(0, |table| table.rows.len());
        self.chosen[self.tab as usize].min(len.saturating_sub(1))
    }

    fn chosen_cell(&self, name: &str) -> Option<String> {
        let row = *self.order().get(self.chosen_row())?;
        let cell = self.table()?.get(row, name)?;
        Some(cell.to_owned()).filter(|cell| !cell.is_empty())
    }

    /// An operator pressed a key.
    pub fn press(&mut self, key: Key) -> Option<Effect> {
        if key == Key::Interrupt {
            return Some(Effect::Quit);
        }
        if std::mem::take(&mut self.help) {
            return None;
        }
        if let Some(dialog) = self.dialog.take() {
            return self.answer(dialog, key);
        }
        match key {
            Key::Char('q') | Key::Escape => return Some(Effect::Quit),
            Key::Char('?' | 'h') => self.help = true,
            Key::Char(digit @ '1'..='4') => return self.show(Tab::ALL[digit as usize - '1' as usize]),
            Key::Tab => return self.show(Tab::ALL[(self.tab as usize + 1) % 4]),
            Key::Char('s') => self.sort_by_next(),
            Key::Char('S') => {
                let sort = &mut self.sorts[self.tab as usize];
                sort.descending = !sort.descending;
            }
            Key::Char('p') => {
                self.begin(self.chosen_lane().map(Deed::Pause), "choose a lane (key 1) to pause")
            }
            Key::Char('r') => {
                self.begin(self.chosen_lane().map(Deed::Resume), "choose a lane (key 1) to resume")
            }
            Key::Char('f') => self.begin(Some(Deed::Freeze), ""),
            Key::Char('R') => self.begin(Some(Deed::ResumeAll), ""),
            Key::Char('x') => {
                self.begin(self.chosen_client().map(Deed::Reset), "choose a client (key 2 or 3) to reset")
            }
            _ => self.step(key),
        }
        None
    }

    fn show(&mut self, tab: Tab) -> Option<Effect> {
        self.tab = tab;
        self.message.clear();
        Some(Effect::Refresh)
    }

    fn step(&mut self, key: Key) {
        let len = self.table().map_or(0, |table| table.rows.len());
        let at = self.chosen_row();
        let to = match key {
            Key::Up | Key::Char('k') => at.saturating_sub(1),
            Key::Down | Key::Char('j') => at + 1,
            Key::PageUp => at.saturating_sub(PAGE),
            Key::PageDown => at + PAGE,
            Key::Home => 0,
            Key::End => len,
            _ => return,
        };
        self.chosen[self.tab as usize] = to.min(len.saturating_sub(1));
    }

    fn sort_by_next(&mut self) {
        let sort = &mut self.sorts[self.tab as usize];
        let next = sort.column.map_or(0, |at| at + 1);
        sort.column = (next < self.tab.columns().len()).then_some(next);
        // Figures are looked at from the largest.
        sort.descending = sort.column.is_some_and(|at| self.tab.columns()[at].is_figure);
    }

    fn chosen_lane(&self) -> Option<String> {
        if self.tab == Tab::Lanes { self.chosen_cell("lane") } else { None }
    }

    fn chosen_client(&self) -> Option<String> {
        if matches!(self.tab, Tab::Clients | Tab::Leaks) { self.chosen_cell("id") } else { None }
    }

    fn begin(&mut self, deed: Option<Deed>, otherwise: &str) {
        self.message = String::new();
        let Some(deed) = deed else {
            otherwise.clone_into(&mut self.message);
            return;
        };
        let question = if deed.takes_time() { Question::Over } else { Question::Reason };
        self.dialog = Some(Dialog { deed, question, over: String::new(), reason: String::new() });
    }

    /// An answer to what the dialog asks. Nothing is done without a `y` at its end.
    fn answer(&mut self, mut dialog: Dialog, key: Key) -> Option<Effect> {
        if key == Key::Escape {
            "nothing was done".clone_into(&mut self.message);
            return None;
        }
        if dialog.question == Question::Sure {
            return match key {
                Key::Char('y' | 'Y') => {
                    self.message = format!("{} ...", dialog.deed.title());
                    Some(Effect::Carry(dialog.deed.statements(dialog.reason.trim(), dialog.over.trim())))
                }
                Key::Char('n' | 'N') => {
                    "nothing was done".clone_into(&mut self.message);
                    None
                }
                _ => {
                    self.dialog = Some(dialog);
                    None
                }
            };
        }
        let input = if dialog.question == Question::Over { &mut dialog.over } else { &mut dialog.reason };
        match key {
            Key::Char(c) if input.chars().count() < INPUT_MAX => input.push(c),
            Key::Backspace => drop(input.pop()),
            Key::Enter if dialog.question == Question::Over => dialog.question = Question::Reason,
            Key::Enter => dialog.question = Question::Sure,
            _ => {}
        }
        self.dialog = Some(dialog);
        None
    }

    /// What the console said to a deed.
    pub fn told(&mut self, lines: &[String]) {
        self.message = printable(&if lines.is_empty() { "done".to_owned() } else { lines.join("; ") });
    }
}

/// Figures by their size, everything else by its letters; nothing comes first.
fn compare(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.total_cmp(&b),
        (Ok(_), Err(_)) => {
            if b.is_empty() {
                Ordering::Greater
            } else {
                Ordering::Less
            }
        }
        (Err(_), Ok(_)) => {
            if a.is_empty() {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        }
        _ => a.cmp(b),
    }
}
