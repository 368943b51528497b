//! Keeps the memory of this process, which holds passwords and keys, out of core dumps and from other processes of its user.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Set to `1`, it leaves core dumps and debuggers as the system has them.
const ALLOW: &str = "PGWEIR_ALLOW_DUMPS";

/// Makes this process undumpable: no core file, and no ptrace(2) or /proc/PID/mem but for root. Its /proc/PID then belongs to root;
/// what everybody may read there stays so.
pub(super) fn seal() {
    if std::env::var_os(ALLOW).is_some_and(|value| value == "1") {
        tracing::warn!("{ALLOW}=1: core dumps of this process may hold passwords");
        return;
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "PR_SET_DUMPABLE");
    }
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        tracing::warn!(%error, "RLIMIT_CORE");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{dumpable_behavior, getrlimit};

    #[test]
    fn a_sealed_process_is_not_dumpable() {
        seal();
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }
}
