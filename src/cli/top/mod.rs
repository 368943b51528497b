//! `pgweir top`: usage, lanes, clients, leaks and the timeline in a terminal, every second, with keys for what an operator does. Shell:
//! the terminal, the keyboard and the console; what is known and shown is in [`model`] and [`view`].

pub mod columns;
pub mod model;
pub mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::console::{Console, Failure};
use super::endpoint::AdminEndpoint;
use model::{Data, Effect, Key, Model, Tab};
use view::Look;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A look that takes longer is given up, and the connection with it.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Entries of the timeline kept.
const TIMELINE_MAX: usize = 200;
/// Keys and orders not yet dealt with.
const WAITING_MAX: usize = 64;

/// What the keeper of the connection is asked.
enum Order {
    Look { clients: bool },
    Carry(Vec<String>),
}

/// What it answers.
enum News {
    Data(Box<Data>),
    Lost(String),
    Told(Vec<String>),
}

/// Runs until the operator leaves, or a signal comes.
///
/// # Errors
/// No terminal; the first look was refused, or the console is out of reach at the beginning.
pub async fn run(endpoint: &AdminEndpoint) -> Result<bool, Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "top needs a terminal: `pgweir status` says once how things are".to_owned(),
        ));
    }
    // A wrong password or address is said before the screen is taken.
    let console = Console::connect(endpoint).await?;
    let look = Look { color: has_color(), unicode: has_unicode() };
    let broken = |error: io::Error| Failure::Usage(format!("the terminal does not do: {error}"));
    let signals = Signals::new().map_err(broken)?;
    let mut screen = Screen::take().map_err(broken)?;
    let done = show(&mut screen.0, look, signals, console, endpoint.clone()).await;
    drop(screen);
    done.map_err(broken)?;
    Ok(true)
}

/// The terminal while it is ours. Dropped, it is as before; a panic of any thread gives it back first, so that its words can be read.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Self> {
        // Installs the panic hook, too.
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The hook has done it; twice would put the cursor back over what the panic said.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// What ends a program from outside.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let of = |kind| signal(kind);
        Ok(Self([of(SignalKind::terminate())?, of(SignalKind::hangup())?, of(SignalKind::interrupt())?]))
    }

    async fn any(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Whether colours are wanted (no-color.org) and there.
fn has_color() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let term = std::env::var("TERM").unwrap_or_default();
    !set("NO_COLOR") && !matches!(term.as_str(), "" | "dumb" | "vt100" | "vt220")
}

/// By the locale, as C programs find it.
fn has_unicode() -> bool {
    let first = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
    let locale = first.into_iter().find(|value| !value.is_empty()).unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

async fn show(
    terminal: &mut DefaultTerminal,
    look: Look,
    mut signals: Signals,
    console: Console,
    endpoint: AdminEndpoint,
) -> io::Result<()> {
    let mut model = Model::default();
    let (orders, taken) = mpsc::channel(WAITING_MAX);
    let (tell, mut news) = mpsc::channel(WAITING_MAX);
    tokio::spawn(keep(endpoint, Some(console), taken, tell));
    let mut keys = keyboard();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looking = false;
    loop {
        terminal.draw(|frame| view::draw(&model, look, frame))?;
        let mut wants = false;
        tokio::select! {
            () = signals.any() => return Ok(()),
            _ = ticks.tick() => wants = true,
            told = news.recv() => match told {
                Some(News::Data(data)) => {
                    looking = false;
                    model.answered(*data);
                }
                Some(News::Lost(why)) => {
                    looking = false;
                    model.failed(why);
                }
                Some(News::Told(lines)) => {
                    model.told(&lines);
                    wants = true;
                }
                // Its panic has given the terminal back: nothing may be drawn there any more.
                None => return Err(io::Error::other("what talks to pgweir has ended")),
            },
            event = keys.recv() => match event {
                Some(Event::Key(pressed)) => match key_of(pressed).and_then(|key| model.press(key)) {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Refresh) => wants = true,
                    Some(Effect::Carry(statements)) => hand_over(&orders, &mut model, statements),
                    None => {}
                },
                Some(_) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
        }
        if wants && !looking {
            looking = orders.try_send(Order::Look { clients: model.tab == Tab::Clients }).is_ok();
        }
    }
}

/// A full queue is a console that hangs: what it does not take, it is not asked twice.
fn hand_over(orders: &mpsc::Sender<Order>, model: &mut Model, statements: Vec<String>) {
    if orders.try_send(Order::Carry(statements)).is_err() {
        model.told(&["not done: pgweir does not answer".to_owned()]);
    }
}

/// Keys and changes of size, read on a thread of their own: reading blocks.
fn keyboard() -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel(WAITING_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if send.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receive
}

fn key_of(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c' | 'd') if control => Key::Interrupt,
        KeyCode::Char(_) if control || pressed.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

/// Keeps the connection to the console, and makes it anew where it broke.
async fn keep(
    endpoint: AdminEndpoint,
    mut console: Option<Console>,
    mut orders: mpsc::Receiver<Order>,
    news: mpsc::Sender<News>,
) {
    while let Some(order) = orders.recv().await {
        if console.is_none() {
            match Console::connect(&endpoint).await {
                Ok(new) => console = Some(new),
                Err(failure) => {
                    let why = failure.to_string();
                    let told = match order {
                        Order::Look { .. } => News::Lost(why),
                        Order::Carry(_) => News::Told(vec![format!("not done: {why}")]),
                    };
                    if news.send(told).await.is_err() {
                        return;
                    }
                    continue;
                }
            }
        }
        let Some(open) = &console else { continue };
        let (answer, lost) = match order {
            Order::Look { clients } => match tokio::time::timeout(LOOK_MAX, look_at(open, clients)).await {
                Ok(Ok(data)) => (News::Data(Box::new(data)), false),
                Ok(Err(failure)) => (News::Lost(failure.to_string()), true),
                Err(_) => (News::Lost("pgweir does not answer".to_owned()), true),
            },
            Order::Carry(statements) => carry(open, &statements).await,
        };
        if lost {
            console = None;
        }
        if news.send(answer).await.is_err() {
            return;
        }
    }
}

async fn look_at(console: &Console, clients: bool) -> Result<Data, Failure> {
    let mut data = Data {
        usage: console.show("SHOW USAGE").await?,
        lanes: console.show("SHOW LANES").await?,
        leaks: console.show("SHOW LEAKS").await?,
        timeline: console.show("SHOW TIMELINE").await?,
        status: console.pairs("SHOW STATUS").await?,
        ..Data::default()
    };
    if clients {
        data.clients = console.show("SHOW CLIENTS").await?;
    }
    let rows = &mut data.timeline.rows;
    rows.drain(..rows.len().saturating_sub(TIMELINE_MAX));
    Ok(data)
}

/// The first statement that fails ends it. True: the connection is gone.
async fn carry(console: &Console, statements: &[String]) -> (News, bool) {
    let mut said = Vec::new();
    for (at, statement) in statements.iter().enumerate() {
        match console.act(statement).await {
            // What a note before the deed is answered with is of no interest.
            Ok(lines) if at + 1 == statements.len() => said = lines,
            Ok(_) => {}
            Err(failure @ Failure::Refused(_)) => return (News::Told(vec![failure.to_string()]), false),
            Err(failure) => return (News::Told(vec![failure.to_string()]), true),
        }
    }
    (News::Told(said), false)
}

#[cfg(test)]
mod tests;
