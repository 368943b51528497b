//! What becomes of a client whose login came to nothing, or that is refused.

use super::super::server::Server;
use super::*;

/// How a try ended.
pub(super) enum Failure {
    /// Wait and dial again.
    Again(DialFailure),
    /// Tell the client.
    Refuse(Refusal),
    /// The client has been told, or is gone.
    Told,
}

impl Newcomer<'_> {
    /// A server was not reached; one that is not dialled any more is nobody's trouble.
    pub(super) fn not_reached(&self, server: &Server, why: String) -> Failure {
        Failure::Again(if self.hub.dials(server) { DialFailure::Down(why) } else { DialFailure::Moved })
    }

    /// What becomes of a login that failed. PostgreSQL's side is always read to its end, which frees the slot; nobody waits for that
    /// but a client that may dial again.
    pub(super) async fn failed(
        &mut self,
        error: LoginError,
        server: &Server,
        mut upstream: Stream,
        slot: &mut Option<Slot>,
    ) -> Failure {
        let id = self.shared().id;
        let _ = upstream.shutdown().await;
        let error = if self.hub.dials(server) { error } else { error.of_another_server() };
        let failure = match error {
            LoginError::NotNow { error, full, asked: false } => {
                self.count_full(full);
                // Nobody was authenticated, so the backend, if there is one, ends with its connection.
                let _ = timeout(REDIAL_CLOSE, closing::wait_closed(&mut upstream)).await;
                if let Some(slot) = slot.take() {
                    slot.forget();
                }
                return Failure::Again(if full { DialFailure::Full } else { DialFailure::Down(error) });
            }
            LoginError::NotNow { error, full, asked: true } => {
                self.count_full(full);
                if full {
                    self.hub.guard(|guard, now| guard.too_many_clients(now));
                }
                let reason = if full { Reason::UpstreamFull } else { Reason::UpstreamDown };
                let detail = format!("PostgreSQL said: {error}");
                Failure::Refuse(Refusal::new(reason, detail, "pgweir usage"))
            }
            LoginError::Moved { told: false } => {
                if let Some(slot) = slot.take() {
                    slot.forget();
                }
                return Failure::Again(DialFailure::Moved);
            }
            LoginError::Moved { told: true } => Failure::Refuse(left_during_login()),
            LoginError::ClientGone => Failure::Told,
            LoginError::Limited { limit, words } => {
                if self.relieve(limit, &mut upstream).await {
                    if let Some(slot) = slot.take() {
                        slot.forget();
                    }
                    return Failure::Again(DialFailure::Limited);
                }
                let _ = timeout(WORDS_TIMEOUT, self.client.write_all(&words)).await;
                Failure::Told
            }
            LoginError::Refused(error) => {
                info!(client = id.0, lane = %self.lane.name, sqlstate = %error.state, routine = error.routine,
                      "PostgreSQL refused the login");
                Failure::Told
            }
            LoginError::Refuse(refusal) => Failure::Refuse(refusal),
            LoginError::NotLetIn(why) => Failure::Refuse(self.not_let_in(&why)),
        };
        self.hub.guard(|guard, now| guard.closing(now, id));
        if let Some(mut slot) = slot.take() {
            tokio::spawn(async move {
                if closing::wait_closed(&mut upstream).await {
                    slot.release_now();
                }
            });
        }
        failure
    }

    /// Makes room under a CONNECTION LIMIT: closes a pooled connection that counts against it, and waits for its end. False if there is none.
    pub(super) async fn relieve(&self, limit: Limit, upstream: &mut Stream) -> bool {
        let id = self.shared().id;
        let Some(pooled) = self.hub.guard(|guard, now| guard.relieve_limit(now, id, limit == Limit::Role))
        else {
            return false;
        };
        let ends = async {
            closing::wait_closed(upstream).await;
            while self.hub.guard(|guard, _| guard.has_slot(pooled)) {
                tokio::time::sleep(LOOK_FOR_ROOM).await;
            }
        };
        let _ = timeout(REDIAL_CLOSE, ends).await;
        true
    }

    /// What is stored of the user is not what PostgreSQL has: the next login asks anew.
    pub(super) fn not_let_in(&self, why: &str) -> Refusal {
        let user = &self.facts.user;
        if let Some(own) = &self.own {
            own.credentials.stored.forget();
        }
        self.hub.authority.forget(user);
        if self.hub.may_log(&self.lane.name, Reason::UpstreamLogin) {
            warn!(lane = %self.lane.name, user = ?user, why, "pgweir could not log in upstream as {user:?}");
        }
        let hint = "the secret in [auth] users_file, or the auth query's, must fit PostgreSQL's";
        Refusal::new(Reason::UpstreamLogin, format!("as \"{user}\": {why}"), hint)
    }

    pub(super) fn count_full(&self, full: bool) {
        if full {
            self.hub.counters.too_many_clients.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Refuses the client. `counted` says that the guard, whose decision it was, has counted it.
    pub(super) async fn refuse<T>(self, refusal: Refusal, counted: bool) -> Option<T> {
        let id = self.shared().id;
        if !counted {
            self.hub.guard(|guard, _| guard.count_refusal(self.lane.id, refusal.reason));
        }
        if self.hub.may_log(&self.lane.name, refusal.reason) {
            info!(client = id.0, lane = %self.lane.name, reason = refusal.reason.label(), user = ?self.facts.user,
              database = ?self.facts.database, application = ?self.facts.application, address = ?self.shared().address(),
              detail = refusal.detail, "refused");
        }
        closing::refuse(self.client, &refusal).await;
        None
    }
}
