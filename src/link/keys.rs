//! Cancel keys: what a client must present, and what PostgreSQL must be presented in its place.

use std::fmt;
use std::sync::Arc;

use super::server::Server;

/// The two keys of a link, equally long, and the server whose they are. Most are the 4 bytes of protocol 3.0 and kept in place; clones
/// share longer ones.
#[derive(Clone, Default)]
pub struct CancelKeys {
    kept: Kept,
    server: Option<Arc<Server>>,
}

#[derive(Clone, Default)]
enum Kept {
    /// PostgreSQL gave none.
    #[default]
    None,
    Short([u8; 4], [u8; 4]),
    Long(Arc<(Vec<u8>, Vec<u8>)>),
}

impl CancelKeys {
    /// The keys of a link: the client's, and PostgreSQL's.
    pub fn new(secret: &[u8], upstream: &[u8]) -> Self {
        let kept = match (secret.try_into(), upstream.try_into()) {
            (Ok(secret), Ok(upstream)) => Kept::Short(secret, upstream),
            _ => Kept::Long(Arc::new((secret.to_vec(), upstream.to_vec()))),
        };
        Self { kept, server: None }
    }

    /// The same, of a backend of `server`.
    pub fn at(self, server: Arc<Server>) -> Self {
        Self { server: Some(server), ..self }
    }

    /// Where a cancel must go; none where nothing was dialled.
    pub fn server(&self) -> Option<&Arc<Server>> {
        self.server.as_ref()
    }

    /// What the client must present; empty where there is nothing to present.
    pub fn secret(&self) -> &[u8] {
        match &self.kept {
            Kept::None => &[],
            Kept::Short(secret, _) => secret,
            Kept::Long(keys) => &keys.0,
        }
    }

    /// What PostgreSQL must be presented.
    pub fn upstream(&self) -> &[u8] {
        match &self.kept {
            Kept::None => &[],
            Kept::Short(_, upstream) => upstream,
            Kept::Long(keys) => &keys.1,
        }
    }
}

impl fmt::Debug for CancelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelKeys({} bytes)", self.secret().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_any_length_come_back_and_are_not_shown() {
        assert!(size_of::<CancelKeys>() <= 24, "{}", size_of::<CancelKeys>());
        for len in [1_usize, 4, 32, 256] {
            let (secret, upstream) = (vec![201; len], vec![202; len]);
            let keys = CancelKeys::new(&secret, &upstream).clone();
            assert_eq!((keys.secret(), keys.upstream()), (&*secret, &*upstream));
            assert!(!format!("{keys:?}").contains("20"));
        }
        assert_eq!(CancelKeys::default().secret(), b"");
    }
}
