use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::columns::{LANES, fitting};
use super::model::{Data, Dialog, Effect, Key, Model, Question, Sort, Tab};
use super::view::{Look, draw};
use crate::cli::table::Table;

const PLAIN: Look = Look { color: false, unicode: false };

fn table(names: &[&str], rows: &[&[&str]]) -> Table {
    let cells = |row: &&[&str]| row.iter().map(|cell| Some((*cell).to_owned())).collect();
    Table {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        kinds: Vec::new(),
        rows: rows.iter().map(cells).collect(),
    }
}

fn data() -> Data {
    let status = [
        ("clients", "12"),
        ("too_many_clients", "0"),
        ("monitor", "ok"),
        ("upstream", "up"),
        ("state", "running"),
    ];
    Data {
        usage: table(
            &["usable", "connections", "percent", "own_slots", "bypass", "idle_in_transaction"],
            &[&["40", "33", "82.5", "20", "13", "3"]],
        ),
        lanes: table(
            &[
                "lane",
                "state",
                "slots",
                "quota",
                "active",
                "idle",
                "idle_in_transaction",
                "waiting",
                "max_wait_ms",
                "reason",
            ],
            &[
                &["web", "open", "9", "24", "2", "6", "1", "0", "0", ""],
                &["cron", "paused", "11", "12", "1", "8", "2", "4", "1500", "imports"],
            ],
        ),
        clients: Table::default(),
        leaks: table(
            &["id", "lane", "idle_in_transaction_ms", "verdict"],
            &[&["7", "web", "900", "warn"], &["42", "web", "65000", "reset in 3 s"]],
        ),
        timeline: table(
            &["at", "event", "lane", "who", "text"],
            &[
                &["2026-03-01T02:14:07.250Z", "shed", "cron", "pgweir", "usage is above 75 %"],
                &["2026-03-01T02:15:00.000Z", "pause", "cron", "admin (alice)", "imports\u{1b}[2J"],
            ],
        ),
        status: status
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn model() -> Model {
    let mut model = Model::default();
    model.answered(data());
    model
}

fn screen(model: &Model, look: Look, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    terminal.draw(|frame| draw(model, look, frame)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

fn press(model: &mut Model, keys: &str) -> Option<Effect> {
    let mut last = None;
    for key in keys.chars() {
        last = model.press(match key {
            '\n' => Key::Enter,
            '\t' => Key::Tab,
            key => Key::Char(key),
        });
    }
    last
}

#[test]
fn at_80_by_24_all_is_there() {
    let lines = screen(&model(), PLAIN, 80, 24);
    assert_eq!(lines[0], "PAUSED: cron (imports); 4 waiting");
    // 82.5 % of the 72 cells in front of the figure; the mark at 75 % is passed.
    assert_eq!(lines[1], format!("{}{}  82.5 %", "#".repeat(59), ".".repeat(13) + ""));
    assert_eq!(lines[2], "33 of 40 used  own 20  bypass 13  in tx 3  clients 12  \"too many clients\" 0");
    assert_eq!(lines[3], "1 Lanes  2 Clients  3 Leaks 2  4 Timeline");
    assert_eq!(lines[4], "LANE       STATE    SLOTS QUOTA  ACT IDLE IN TX WAIT     MS REASON");
    assert_eq!(lines[5], "web        open         9    24    2    6     1    0      0");
    assert_eq!(lines[6], "cron       paused      11    12    1    8     2    4   1500 imports");
    assert!(lines[18].starts_with("- timeline --"));
    assert_eq!(lines[19], "02:14:07 shed cron pgweir: usage is above 75 %");
    assert_eq!(lines[20], "02:15:00 pause cron admin (alice): imports [2J");
    assert_eq!(lines[23], "q quit  ? help  Tab list  s/S sort  p pause  r resume  x reset  f freeze  R all");
}

#[test]
fn at_40_by_12_what_matters_is_left() {
    let lines = screen(&model(), PLAIN, 40, 12);
    assert_eq!(lines[4], "LANE       STATE    SLOTS QUOTA WAIT");
    assert_eq!(lines[6], "cron       paused      11    12 4");
    assert!(lines.iter().all(|line| !line.contains("timeline --")));
    assert_eq!(lines[11], "q quit  ? help  p pause  r resume");
    for (width, height) in [(1, 1), (5, 3), (20, 6), (250, 80)] {
        screen(&model(), PLAIN, width, height);
        let mut asked = model();
        press(&mut asked, "p");
        screen(&asked, PLAIN, width, height);
        press(&mut asked, "imports\n");
        screen(&asked, PLAIN, width, height);
    }
}

#[test]
fn columns_are_given_up_by_their_rank() {
    let names = |width| fitting(LANES, width).iter().map(|column| column.title).collect::<Vec<_>>();
    assert_eq!(names(12), ["LANE"]);
    assert_eq!(names(26), ["LANE", "STATE", "SLOTS"]);
    assert_eq!(names(200).len(), LANES.len());
}

#[test]
fn a_pause_is_asked_for_with_its_reason_and_confirmed() {
    let mut model = model();
    model.press(Key::Down);
    press(&mut model, "p");
    assert!(matches!(&model.dialog, Some(Dialog { question: Question::Reason, .. })));
    assert!(screen(&model, PLAIN, 80, 24).iter().any(|line| line.contains("Reason? _")));
    press(&mut model, "it's late\n");
    let shown = screen(&model, PLAIN, 80, 24).join("\n");
    assert!(shown.contains("Pause lane cron: y or n?") && shown.contains("Reason: it's late"), "{shown}");
    assert_eq!(press(&mut model, "z"), None, "only y does it");
    assert_eq!(
        press(&mut model, "y"),
        Some(Effect::Carry(vec!["PAUSE LANE cron REASON 'it''s late'".into()]))
    );
    assert_eq!(model.dialog, None);
}

#[test]
fn nothing_is_done_without_a_yes() {
    for keys in ["px\nn", "r\n\nn", "f\nn"] {
        let mut model = model();
        assert_eq!(press(&mut model, keys), None, "{keys:?}");
        assert_eq!((model.dialog.is_none(), model.message.as_str()), (true, "nothing was done"));
    }
    let mut model = model();
    press(&mut model, "p");
    assert_eq!(model.press(Key::Escape), None);
    assert_eq!(model.press(Key::Escape), Some(Effect::Quit));
}

#[test]
fn a_resume_takes_a_time_and_its_reason_is_noted() {
    let mut model = model();
    let wanted = ["NOTE 'Resume lane web: calm again'", "RESUME LANE web OVER '5m'"];
    assert_eq!(
        press(&mut model, "r5m\ncalm again\ny"),
        Some(Effect::Carry(wanted.map(String::from).to_vec()))
    );
    assert_eq!(press(&mut model, "R\n\ny"), Some(Effect::Carry(vec!["RESUME ALL".into()])));
}

#[test]
fn a_reset_hits_the_client_that_is_chosen() {
    let mut model = model();
    assert_eq!(press(&mut model, "x"), None);
    assert!(model.dialog.is_none() && model.message.contains("choose a client"));
    press(&mut model, "3");
    // The longest idle first.
    let wanted = ["NOTE 'Reset client 42: stuck'", "RESET CLIENT 42"];
    assert_eq!(press(&mut model, "xstuck\ny"), Some(Effect::Carry(wanted.map(String::from).to_vec())));
    model.press(Key::Down);
    assert_eq!(press(&mut model, "x\ny"), Some(Effect::Carry(vec!["RESET CLIENT 7".into()])));
}

#[test]
fn lists_are_sorted_by_figures_as_figures() {
    let mut model = model();
    assert_eq!(model.order(), [0, 1], "the console's own order");
    press(&mut model, "s");
    assert_eq!((model.sorts[0], model.order()), (Sort { column: Some(0), descending: false }, vec![1, 0]));
    press(&mut model, "ss");
    assert_eq!((model.sorts[0], model.order()), (Sort { column: Some(2), descending: true }, vec![1, 0]));
    press(&mut model, "S");
    assert_eq!(model.order(), [0, 1], "9 before 11");
    assert!(screen(&model, PLAIN, 80, 24)[3].ends_with("sort +SLOTS"));
}

#[test]
fn a_console_out_of_reach_is_said_and_comes_back() {
    let mut model = model();
    model.failed("cannot reach 127.0.0.1:6433".into());
    model.failed("cannot reach 127.0.0.1:6433".into());
    let lines = screen(&model, PLAIN, 80, 24);
    assert_eq!(lines[0], "NOT REACHED (2 tries): cannot reach 127.0.0.1:6433");
    assert!(lines[5].starts_with("web"), "what was known last stays");
    model.answered(data());
    assert!(screen(&model, PLAIN, 80, 24)[0].starts_with("PAUSED"));
}

#[test]
fn a_long_list_scrolls_to_what_is_chosen() {
    let mut model = model();
    let rows: Vec<Vec<Option<String>>> =
        (0..500).map(|n| vec![Some(n.to_string()), Some("idle".into())]).collect();
    let mut data = data();
    data.clients = Table { names: vec!["id".into(), "state".into()], kinds: Vec::new(), rows };
    model.answered(data);
    assert_eq!(model.press(Key::Char('2')), Some(Effect::Refresh));
    model.press(Key::End);
    let shown = screen(&model, PLAIN, 80, 24).join("\n");
    assert!(shown.contains("   499 ") && !shown.contains("     0 "), "{shown}");
    model.press(Key::PageUp);
    assert_eq!((model.tab, model.chosen_row()), (Tab::Clients, 489));
}

#[test]
fn without_colour_nothing_is_coloured_and_with_it_trouble_is() {
    use ratatui::style::Color;
    let colours = |look| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a screen");
        terminal.draw(|frame| draw(&model(), look, frame)).expect("drawn");
        terminal.backend().buffer().content.iter().filter(|cell| cell.fg != Color::Reset).count()
    };
    assert_eq!(colours(PLAIN), 0);
    assert!(colours(Look { color: true, unicode: true }) > 50);
}

#[test]
fn help_covers_the_screen_until_a_key_is_pressed() {
    let mut model = model();
    press(&mut model, "?");
    assert!(screen(&model, PLAIN, 40, 12).join("\n").contains("Keys"));
    assert_eq!(press(&mut model, "q"), None, "that key only closes the help");
    assert_eq!(press(&mut model, "q"), Some(Effect::Quit));
}

/// Set where this test plays the program that panics, in a terminal of its own.
const PANICS: &str = "PGWEIR_TEST_TOP_PANICS";

#[test]
fn a_panic_gives_the_terminal_back_before_it_says_why() {
    match std::env::var(PANICS).as_deref() {
        Ok("here") => {
            let _screen = super::Screen::take().expect("a terminal");
            panic!("words of the panic");
        }
        Ok(_) => {
            let _screen = super::Screen::take().expect("a terminal");
            let keyboard = std::thread::spawn(|| panic!("words of the panic"));
            assert!(keyboard.join().is_err());
            // What `run` does next would come too late for the words.
            std::process::exit(1);
        }
        Err(_) => {}
    }
    let own = std::env::current_exe().expect("a test has a file");
    let name = concat!(module_path!(), "::a_panic_gives_the_terminal_back_before_it_says_why");
    let name = name.split_once("::").expect("in a crate").1;
    for place in ["here", "in another thread"] {
        // util-linux has a terminal for it; the marks stand before and behind what it wrote.
        let program = format!(
            "stty cols 80 rows 24; echo \"<$(stty -g)>\"; {PANICS}='{place}' '{}' --exact {name} --nocapture; echo \"<$(stty -g)>\"",
            own.display()
        );
        let mut script = Command::new("script");
        let done =
            script.args(["-qec", &program, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null()).output();
        let text = String::from_utf8_lossy(&done.expect("script").stdout).into_owned();
        let settings: Vec<&str> =
            text.lines().map(str::trim).filter(|line| line.starts_with('<') && line.ends_with('>')).collect();
        assert_eq!(settings.len(), 2, "{text:?}");
        assert_eq!(settings[0], settings[1], "echo and line mode are back, {place}");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        assert!(at("\x1b[?1049h") < at("\x1b[?1049l") && at("\x1b[?1049l") < at("words of the panic"));
        assert_eq!(text.matches("\x1b[?1049l").count(), 1, "{text:?}");
    }
}
