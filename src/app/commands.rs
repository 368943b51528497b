//! Operators' commands, carried out and put on record.

use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::admin::command::Command;
use crate::admin::control::{CommandError, Operator, Outcome};
use crate::clock;
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::settings::{Disposition, LeakAction};
use crate::link::cancel;
use crate::link::shared::{Command as Order, LinkShared, LinkState, flag};
use crate::reason::{Reason, Refusal};
use crate::upstream::monitor::Whom;

/// How long RESET CLIENT waits to say what became of it.
const RESET_ANSWER: Duration = Duration::from_secs(2);
const RESET_LOOK: Duration = Duration::from_millis(1);

type Done = Result<Outcome, CommandError>;

fn said(line: impl Into<String>) -> Done {
    Ok(Outcome { lines: vec![line.into()] })
}

fn for_how_long(duration: Option<Duration>) -> String {
    duration.map_or_else(String::new, |d| format!(" for {} s", d.as_secs()))
}

impl App {
    pub(super) async fn carry_out(&self, who: &Operator, command: Command) -> Done {
        let by = who.name.as_str();
        match command {
            Command::Freeze { duration, reason } => self.freeze(by, duration, &reason).await,
            Command::Pause { lane, how, duration, reason } => {
                self.pause(by, &lane, how, duration, &reason).await
            }
            Command::PauseAll { reason } => self.pause_all(by, &reason).await,
            Command::Resume { lane, over } => self.resume(by, &lane, over).await,
            Command::ResumeAll { over } => {
                match self.hub.guard(|guard, now| guard.resume_all(now, over, by)) {
                    0 => said("no lane was paused"),
                    count => {
                        let line = "every pause is being lifted, best priority first";
                        self.persisted(format!("{line}; lanes: {count}")).await
                    }
                }
            }
            Command::Drain { lane } => self.drain_lane(by, &lane),
            Command::CancelClient { id } => self.cancel_client(by, id).await,
            Command::ResetClient { id } => self.reset_client(by, id).await,
            Command::KillClient { id } => self.kill_client(by, id),
            Command::CancelPid { pid } => self.signal(by, pid, false).await,
            Command::TerminatePid { pid } => self.signal(by, pid, true).await,
            Command::Note { text } => {
                self.note_by(by, "note", "", None, &text);
                said("noted")
            }
            Command::SetQuota { lane, quota } => {
                let id = self.lane(&lane)?;
                self.hub
                    .guard(|guard, now| guard.set_quota(now, id, quota))
                    .map_err(CommandError::Refused)?;
                self.note_by(
                    by,
                    "set",
                    &lane,
                    None,
                    &format!("quota = {quota}, until the next reload or restart"),
                );
                said(format!("lane {lane}: quota {quota} until the next reload or restart"))
            }
            Command::Reload => self.reload(by).await,
            Command::Shutdown => {
                self.note_by(by, "shutdown", "", None, "asked for at the console");
                self.shutdown.notify_one();
                said("pgweir is draining and will end")
            }
        }
    }

    fn lane(&self, name: &str) -> Result<LaneId, CommandError> {
        let found = self.hub.guard(|guard, _| guard.lane(name));
        found.ok_or_else(|| CommandError::UnknownLane(name.to_owned()))
    }

    fn client(&self, id: u64) -> Result<Arc<LinkShared>, CommandError> {
        let found = self.hub.links.get(&LinkId(id)).map(|entry| entry.value().clone());
        found.ok_or(CommandError::UnknownClient(id))
    }

    /// Says `line`, and whether the pauses now in force will survive a restart.
    async fn persisted(&self, line: String) -> Done {
        let mut lines = vec![line];
        if self.config.load().settings.limits.observe {
            lines.push("mode is \"observe\": this is on record, and nothing is held or refused".to_owned());
        }
        if let Err(error) = self.save_pauses().await {
            lines.push(format!("in force, but it will not survive a restart of pgweir: {error}"));
        }
        Ok(Outcome { lines })
    }

    async fn freeze(&self, by: &str, duration: Option<Duration>, reason: &str) -> Done {
        let frozen = self.hub.guard(|guard, now| {
            let until = duration.map(|duration| now + duration);
            guard.freeze(now, until, by, reason)
        });
        let line = match frozen.paused.as_slice() {
            [] => "no lane was paused by this".to_owned(),
            lanes => format!("paused{}: {}", for_how_long(duration), lanes.join(", ")),
        };
        let mut outcome = self.persisted(line).await?;
        let already = frozen.already.into_iter();
        outcome.lines.extend(already.map(|(lane, who)| format!("lane {lane} was already paused by {who}")));
        outcome.lines.extend(frozen.beyond.into_iter().map(|(lane, text)| format!("lane {lane}: {text}")));
        Ok(outcome)
    }

    async fn pause(
        &self,
        by: &str,
        lane: &str,
        how: Option<Disposition>,
        duration: Option<Duration>,
        reason: &str,
    ) -> Done {
        let id = self.lane(lane)?;
        self.hub.guard(|guard, now| {
            guard.pause(now, id, how, duration.map(|duration| now + duration), by, reason);
        });
        self.persisted(format!("lane {lane} is paused{}", for_how_long(duration))).await
    }

    /// PgBouncer's PAUSE waits until every connection is free; ours says at once how many transactions are still running.
    async fn pause_all(&self, by: &str, reason: &str) -> Done {
        let done = self.hub.guard(|guard, now| guard.pause_all(now, by, reason));
        let line = match done.paused.as_slice() {
            [] => "no lane was paused by this".to_owned(),
            lanes => format!("paused: {}", lanes.join(", ")),
        };
        let mut outcome = self.persisted(line).await?;
        let already = done.already.into_iter();
        outcome.lines.extend(already.map(|(lane, who)| format!("lane {lane} was already paused by {who}")));
        let running =
            self.hub.links.iter().filter(|entry| entry.value().flags() & flag::IN_TRANSACTION != 0).count();
        outcome.lines.push(format!("{running} transactions are running and finish; RESUME ends all pauses"));
        Ok(outcome)
    }

    async fn resume(&self, by: &str, lane: &str, over: Option<Duration>) -> Done {
        let id = self.lane(lane)?;
        let running: Vec<LinkId> = self
            .links()
            .filter(|link| link.flags() & flag::IN_TRANSACTION != 0 && link.with_labels(|l| l.lane) == id)
            .map(|link| link.id)
            .collect();
        let was_stopped = self.hub.guard(|guard, now| {
            let was_stopped = guard.resume(now, id, over, by);
            guard.seed_transactions(now, &running);
            was_stopped
        });
        if !was_stopped {
            return said(format!("lane {lane} was not paused"));
        }
        let how = over.map_or_else(String::new, |d| format!(" step by step over {} s", d.as_secs()));
        self.persisted(format!("lane {lane} is resumed{how}")).await
    }

    fn drain_lane(&self, by: &str, lane: &str) -> Done {
        let id = self.lane(lane)?;
        let mut count = 0;
        for link in self.links() {
            if link.with_labels(|labels| labels.lane) == id {
                link.post(Order::Drain);
                count += 1;
            }
        }
        let pooled = self.hub.guard(|guard, now| guard.drain_pool(now, Some(id), false));
        let mut what = format!("{count} links end at their next transaction boundary");
        if pooled > 0 {
            what += &format!(", {pooled} pooled connections are closed");
        }
        self.note_by(by, "drain", lane, None, &what);
        said(format!("lane {lane}: {what}; new ones are still welcome"))
    }

    async fn cancel_client(&self, by: &str, id: u64) -> Done {
        let link = self.client(id)?;
        let pid = link.pid.load(std::sync::atomic::Ordering::Relaxed);
        let Some(keys) = link.cancel_keys().cloned() else {
            return Err(CommandError::Refused(format!("client {id} has no backend yet")));
        };
        let (state, _) = link.state();
        if !matches!(state, LinkState::Active | LinkState::Held) {
            return Err(CommandError::Refused(format!(
                "client {id} has no query running; RESET CLIENT {id} ends an idle transaction, KILL CLIENT {id} the connection"
            )));
        }
        self.note_by(by, "cancel", &lane_of(&link), Some(id), "its running query");
        match cancel::cancel(&self.hub, &link, pid, &keys).await {
            Ok(()) => said(format!("client {id}: PostgreSQL was asked to cancel its query")),
            Err(refusal) => {
                link.post(Order::Close { generation: None, refusal });
                Err(CommandError::Refused(
                    "PostgreSQL did not answer: the client was disconnected".to_owned(),
                ))
            }
        }
    }

    async fn reset_client(&self, by: &str, id: u64) -> Done {
        let link = self.client(id)?;
        let lane_id = link.with_labels(|labels| labels.lane);
        let settings = self.hub.guard(|guard, _| guard.lane_settings(lane_id).clone());
        if settings.protected {
            return Err(CommandError::Refused(format!(
                "lane {} is protected: KILL CLIENT {id} ends the connection",
                settings.name
            )));
        }
        if self.config.load().settings.limits.observe {
            return Err(CommandError::Refused("mode is \"observe\": nothing is reset".to_owned()));
        }
        let (state, _) = link.state();
        let generation = link.generation();
        let stalled = link.flags() & flag::STALLED != 0;
        if state != LinkState::IdleInTransaction && !stalled {
            return Err(CommandError::Refused(format!("client {id} is not idle in a transaction")));
        }
        if link.flags() & flag::RESET != 0 {
            return Err(CommandError::Refused(format!("client {id} has been reset already")));
        }
        let leak = settings.idle_in_transaction.as_ref();
        let disconnects = stalled || leak.is_some_and(|leak| leak.action == LeakAction::Disconnect);
        let (reason, what) = if disconnects {
            (Reason::LeakDisconnect, "disconnected")
        } else {
            (Reason::LeakReset, "rolled back")
        };
        let refusal =
            Refusal::new(reason, format!("{what} by {by} (RESET CLIENT)"), "retry the whole transaction");
        let order = if disconnects {
            Order::Close { generation: Some(generation), refusal }
        } else {
            let sqlstate = leak.map_or(reason.sqlstate(), |leak| leak.sqlstate);
            Order::Reset { generation: Some(generation), sqlstate, refusal }
        };
        link.post(order);
        self.note_by(by, "reset_asked", &settings.name, Some(id), what);
        self.await_reset(&link, generation, disconnects).await
    }

    /// Waits until the reset is done or off.
    async fn await_reset(&self, link: &LinkShared, generation: u32, disconnects: bool) -> Done {
        let id = link.id.0;
        let began = clock::now();
        while clock::now().since(began) < RESET_ANSWER {
            if link.flags() & flag::RESET != 0 {
                return said(format!("client {id}: its transaction was rolled back"));
            }
            let (state, _) = link.state();
            if disconnects && (state == LinkState::Closing || !self.hub.links.contains_key(&link.id)) {
                return said(format!("client {id} was disconnected"));
            }
            if link.generation() != generation {
                return Err(CommandError::Refused(format!("client {id} spoke in between: the reset is off")));
            }
            tokio::time::sleep(RESET_LOOK).await;
        }
        Err(CommandError::Refused(format!(
            "client {id} was not reset within {} s: PostgreSQL has not answered, or something of the client is still on its way; SHOW CLIENTS says \
             \"reset\" once it is done",
            RESET_ANSWER.as_secs()
        )))
    }

    fn kill_client(&self, by: &str, id: u64) -> Done {
        let link = self.client(id)?;
        let refusal = Refusal::new(
            Reason::Killed,
            format!("KILL CLIENT {id} by {by}"),
            "connect again, or ask them why",
        );
        link.post(Order::Close { generation: None, refusal });
        self.note_by(by, "kill", &lane_of(&link), Some(id), "disconnected");
        said(format!("client {id} is being disconnected"))
    }

    async fn signal(&self, by: &str, pid: i32, terminate: bool) -> Done {
        let Some(monitor) = self.monitor.load_full() else {
            return Err(CommandError::Refused("this needs a [monitor] connection".to_owned()));
        };
        if let Some(why) = self.monitor_is_elsewhere() {
            return Err(CommandError::Refused(why));
        }
        let owners = self.hub.owners(pid);
        let elsewhere = owners.iter().find(|_| owners.iter().all(|link| self.hub.pid_here(link) == 0));
        if let Some(link) = elsewhere {
            return Err(CommandError::Refused(format!(
                "pid {pid} is client {0}'s on a server that was left; KILL CLIENT {0} ends it",
                link.id.0
            )));
        }
        // Whom the operator saw, not who may have the pid by now.
        let sample = self.sample.load_full();
        let seen = sample.as_ref().and_then(|sample| sample.sessions.iter().find(|seen| seen.pid == pid));
        let whom = seen.map_or(Whom::anybody(pid), |session| Whom::backend(session));
        let done = if terminate { monitor.terminate_pid(whom).await } else { monitor.cancel_pid(whom).await };
        let (event, what) = if terminate {
            ("terminate", "was terminated")
        } else {
            ("cancel", "was asked to cancel its query")
        };
        match done {
            Ok(true) => {
                self.note_by(by, event, "", None, &format!("pid {pid}"));
                said(format!("pid {pid} {what}"))
            }
            Ok(false) => Err(CommandError::Refused(format!(
                "PostgreSQL has no backend with pid {pid}, or it is another one by now: look again"
            ))),
            Err(error) => Err(CommandError::Refused(error)),
        }
    }
}

fn lane_of(link: &LinkShared) -> String {
    link.with_labels(|labels| labels.lane_name.to_string())
}
