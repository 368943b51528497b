//! The screen of `pgweir top`: a model and a size in, cells out. Pure.
//!
//! ```text
//! verdict          PRESSURE: usage 82 % (33 of 40)
//! usage            ███████████████████░░░░|░░░  82 %
//! figures          own 20  bypass 13  in transaction 3  too many clients 0
//! tabs             1 Lanes  2 Clients  3 Leaks 2  4 Timeline      sort: -SLOTS
//! list             …
//! timeline's end   … (where there is room)
//! keys, or what the console said
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::columns::{Column, fitting};
use super::model::{Dialog, Model, Question, Tab};
use crate::cli::table::{Table, printable};
use crate::cli::verdict::Word;

/// Height from which the timeline's end is shown below the lists.
const TAIL_FROM: u16 = 18;
/// Lines of it.
const TAIL: u16 = 4;
/// Where the bar is marked: the runbook's line.
const MARK_PERCENT: f64 = 75.0;

/// What the terminal can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Colours.
    pub color: bool,
    /// More than ASCII.
    pub unicode: bool,
}

impl Look {
    fn paint(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }
}

/// Draws everything.
pub fn draw(model: &Model, look: Look, frame: &mut Frame<'_>) {
    let area = frame.area();
    let tail = if area.height >= TAIL_FROM && model.tab != Tab::Timeline { TAIL + 1 } else { 0 };
    let [verdict, bar, figures, tabs, list, below, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(if area.height >= 12 { 1 } else { 0 }),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(tail),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(verdict_line(model, look), verdict);
    frame.render_widget(usage_bar(model, look, bar.width), bar);
    frame.render_widget(figures_line(model), figures);
    frame.render_widget(tab_line(model), tabs);
    draw_list(model, look, list, frame);
    draw_tail(model, look, below, frame);
    frame.render_widget(key_line(model, look, keys.width), keys);
    if model.help {
        draw_box("Keys", &HELP, frame);
    }
    if let Some(dialog) = &model.dialog {
        draw_dialog(dialog, look, frame);
    }
}

fn verdict_line(model: &Model, look: Look) -> Line<'static> {
    if let Some((why, times)) = &model.lost {
        let text = printable(&format!("NOT REACHED ({times} tries): {why}"));
        return Line::styled(text, look.paint(Color::Red).add_modifier(Modifier::BOLD | Modifier::REVERSED));
    }
    let Some(data) = &model.data else { return Line::raw("asking pgweir ...") };
    let findings = data.findings();
    let Some(worst) = findings.first() else { return Line::raw("") };
    let color = match worst.word {
        Word::Ok => Color::Green,
        Word::Draining | Word::Down | Word::Saturated => Color::Red,
        Word::Blind | Word::Paused | Word::Pressure | Word::Ramping | Word::Incident => Color::Yellow,
    };
    Line::styled(printable(&worst.sentence()), look.paint(color).add_modifier(Modifier::BOLD))
}

/// Usage between nothing and all, with a mark at the runbook's line.
fn usage_bar(model: &Model, look: Look, width: u16) -> Line<'static> {
    let percent = model.data.as_ref().and_then(|data| data.usage.get(0, "percent")?.parse::<f64>().ok());
    let label = percent.map_or_else(|| "  ? %".to_owned(), |percent| format!("{percent:>5.1} %"));
    let room = usize::from(width).saturating_sub(label.len() + 1);
    let at = |percent: f64| ((percent / 100.0).clamp(0.0, 1.0) * room as f64).round() as usize;
    let filled = percent.map_or(0, at);
    let (full, empty) = if look.unicode { ('█', '░') } else { ('#', '.') };
    let cell = |n: usize| match n {
        n if n == at(MARK_PERCENT) && n >= filled => '|',
        n if n < filled => full,
        _ => empty,
    };
    let color = match percent {
        Some(percent) if percent >= 95.0 => Color::Red,
        Some(percent) if percent >= MARK_PERCENT => Color::Yellow,
        _ => Color::Green,
    };
    let bar: String = (0..room).map(cell).collect();
    Line::from(vec![Span::styled(bar, look.paint(color)), Span::raw(format!(" {label}"))])
}

fn figures_line(model: &Model) -> Line<'static> {
    let Some(data) = &model.data else { return Line::raw("") };
    let usage = |name: &str| printable(data.usage.get(0, name).unwrap_or("?"));
    let status = |name: &str| printable(data.status.get(name).map_or("?", String::as_str));
    Line::raw(format!(
        "{} of {} used  own {}  bypass {}  in tx {}  clients {}  \"too many clients\" {}",
        usage("connections"),
        usage("usable"),
        usage("own_slots"),
        usage("bypass"),
        usage("idle_in_transaction"),
        status("clients"),
        status("too_many_clients"),
    ))
}

fn tab_line(model: &Model) -> Line<'static> {
    let mut spans = Vec::new();
    for (at, tab) in Tab::ALL.into_iter().enumerate() {
        let leaks = model.data.as_ref().map_or(0, |data| data.leaks.rows.len());
        let count = if tab == Tab::Leaks && leaks > 0 { format!(" {leaks}") } else { String::new() };
        let style =
            if tab == model.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        spans.push(Span::styled(format!("{} {}{count}", at + 1, tab.name()), style));
        spans.push(Span::raw("  "));
    }
    let sort = model.sorts[model.tab as usize];
    if let Some(column) = sort.column.and_then(|at| model.tab.columns().get(at)) {
        let sign = if sort.descending { '-' } else { '+' };
        spans.push(Span::raw(format!("sort {sign}{}", column.title)));
    }
    if model.data.as_ref().is_some_and(|data| data.status.get("mode").is_some_and(|mode| mode == "observe")) {
        spans.push(Span::raw("  mode observe: only recorded"));
    }
    Line::from(spans)
}

fn draw_list(model: &Model, look: Look, area: Rect, frame: &mut Frame<'_>) {
    let columns = fitting(model.tab.columns(), area.width);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let heading = columns.iter().map(|column| column.title.to_owned());
    let mut lines = vec![Line::styled(row_text(&columns, heading, area.width), bold)];
    let Some(table) = model.table() else { return frame.render_widget(Paragraph::new(lines), area) };
    let order = model.order();
    let room = usize::from(area.height).saturating_sub(1);
    let chosen = model.chosen_row();
    // The row chosen is always seen.
    let first = (chosen + 1).saturating_sub(room);
    for (at, row) in order.iter().enumerate().skip(first).take(room) {
        let cells = columns.iter().map(|column| printable(table.get(*row, column.name).unwrap_or("")));
        let mut style = row_style(model.tab, table, *row, look);
        if at == chosen {
            style = style.add_modifier(Modifier::REVERSED);
        }
        lines.push(Line::styled(row_text(&columns, cells, area.width), style));
    }
    if order.is_empty() {
        lines.push(Line::raw("none"));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn row_style(tab: Tab, table: &Table, row: usize, look: Look) -> Style {
    let state = table.get(row, "state").unwrap_or("");
    match (tab, state) {
        (Tab::Lanes, "paused") => look.paint(Color::Red),
        (Tab::Lanes, "shedding" | "over" | "ramping") => look.paint(Color::Yellow),
        (Tab::Clients, "waiting" | "held") => look.paint(Color::Yellow),
        (Tab::Leaks, _) => look.paint(Color::Yellow),
        _ => Style::new(),
    }
}

/// One line of cells, each cut or filled to its width; the last takes the rest.
fn row_text(columns: &[Column], cells: impl Iterator<Item = String>, width: u16) -> String {
    let mut out = String::new();
    for (at, (column, cell)) in columns.iter().zip(cells).enumerate() {
        if at > 0 {
            out.push(' ');
        }
        let used = out.chars().count();
        let is_last = at + 1 == columns.len();
        let room = if is_last { usize::from(width).saturating_sub(used) } else { column.width.into() };
        let cell: String = cell.chars().take(room).collect();
        out += &match column.is_figure {
            true if !is_last => format!("{cell:>room$}"),
            _ => format!("{cell:<room$}"),
        };
    }
    out
}

/// The newest entries of the timeline, the newest last.
fn draw_tail(model: &Model, look: Look, area: Rect, frame: &mut Frame<'_>) {
    let Some(data) = model.data.as_ref().filter(|_| area.height > 1) else { return };
    let rule = if look.unicode { '─' } else { '-' };
    let title: String = std::iter::once(rule).chain(" timeline ".chars()).collect();
    let fill = usize::from(area.width).saturating_sub(title.chars().count());
    let mut lines = vec![Line::raw(title + &rule.to_string().repeat(fill))];
    let table = &data.timeline;
    let first = table.rows.len().saturating_sub(usize::from(area.height - 1));
    for row in first..table.rows.len() {
        let cell = |name: &str| printable(table.get(row, name).unwrap_or(""));
        // The time of day: which day it is, is known.
        let time: String = cell("at").chars().skip(11).take(8).collect();
        let lane = cell("lane");
        let lane = if lane.is_empty() { lane } else { format!(" {lane}") };
        lines.push(Line::raw(format!("{time} {}{lane} {}: {}", cell("event"), cell("who"), cell("text"))));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn key_line(model: &Model, look: Look, width: u16) -> Line<'static> {
    if !model.message.is_empty() {
        return Line::styled(model.message.clone(), look.paint(Color::Cyan).add_modifier(Modifier::BOLD));
    }
    let keys = if width >= 76 {
        "q quit  ? help  Tab list  s/S sort  p pause  r resume  x reset  f freeze  R all"
    } else {
        "q quit  ? help  p pause  r resume"
    };
    Line::raw(keys)
}

const HELP: [&str; 12] = [
    "1-4, Tab   lists",
    "up, down   choose (j, k, PgUp, PgDn)",
    "s, S       sort by next column, turn",
    "p          pause the lane",
    "r          resume it, perhaps slowly",
    "f          freeze",
    "R          resume all",
    "x          reset the client",
    "Esc        leave a question",
    "q          quit",
    "bypass: who does not come through pgweir, its monitor too",
    "any key goes back",
];

fn draw_box(title: &str, lines: &[&str], frame: &mut Frame<'_>) {
    let lines: Vec<Line<'_>> = lines.iter().map(|line| Line::raw(*line)).collect();
    draw_lines(title, lines, frame);
}

fn draw_lines(title: &str, lines: Vec<Line<'_>>, frame: &mut Frame<'_>) {
    let area = frame.area();
    let width = area.width.min(62);
    let inner = usize::from(width.saturating_sub(2)).max(1);
    let wanted: usize = lines.iter().map(|line| line.width().div_ceil(inner).max(1)).sum();
    let height = u16::try_from(wanted).unwrap_or(u16::MAX).saturating_add(3).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let text =
        Paragraph::new(lines).wrap(Wrap { trim: false }).block(Block::bordered().title(title.to_owned()));
    frame.render_widget(text, place);
}

fn draw_dialog(dialog: &Dialog, look: Look, frame: &mut Frame<'_>) {
    let mut lines = vec![Line::raw(dialog.deed.consequence())];
    let question = |text: String| Line::styled(text, look.paint(Color::Cyan).add_modifier(Modifier::BOLD));
    match dialog.question {
        Question::Over => {
            lines.push(question(format!("Over how long (5m; empty: at once)? {}_", dialog.over)));
        }
        Question::Reason => lines.push(question(format!("Reason? {}_", dialog.reason))),
        Question::Sure => {
            if !dialog.over.trim().is_empty() {
                lines.push(Line::raw(format!("Over {}", dialog.over)));
            }
            lines.push(Line::raw(match dialog.reason.trim() {
                "" => "No reason given.".to_owned(),
                reason => format!("Reason: {reason}"),
            }));
            lines.push(question(format!("{}: y or n?", dialog.deed.title())));
        }
    }
    draw_lines(&printable(&dialog.deed.title()), lines, frame);
}
