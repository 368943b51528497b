//! Authentication of pgweir's own: the users file put into force, the auth query put to the monitor.

use std::sync::{Arc, Weak};

use super::App;
use crate::auth::users::Users;
use crate::link::authority::AskError;
use crate::upstream::monitor::LookUpError;

impl App {
    /// Puts users into force. What their passwords are checked against is derived beside the work.
    pub(super) fn set_users(&self, users: Users) {
        self.hub.authority.set_users(users);
        let hub = self.hub.clone();
        tokio::task::spawn_blocking(move || hub.authority.derive_all());
    }
}

/// Lets logins put the auth query to whatever monitor is running.
pub(super) fn connect(app: &Arc<App>) {
    let weak: Weak<App> = Arc::downgrade(app);
    app.hub.authority.set_ask(Box::new(move |query, user| {
        let monitor = weak.upgrade().and_then(|app| app.monitor.load_full());
        Box::pin(async move {
            let monitor = monitor.ok_or(AskError::NotConnected)?;
            monitor.look_up(&query, &user).await.map_err(|error| match error {
                LookUpError::NotConnected => AskError::NotConnected,
                LookUpError::Failed(why) => AskError::Failed(why),
            })
        })
    }));
}
