//! A program: no shell, no input, a process group of its own that ends with the look.

use std::process::Stdio;
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::number;
use crate::incident::exit::Measured;

/// Bytes of its output, and of its complaints, that are kept. The rest is read and dropped, so that it does not wait for us.
const OUTPUT_BYTES_MAX: usize = 4096;
/// The environment it gets of ours: nothing that might hold a secret.
const ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Ends what a look leaves behind, its grandchildren too.
struct Group {
    leader: Option<Pid>,
    child: Child,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // Nobody of the group may be left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs it; dropping the future kills it. Its exit status must be 0; with `number` its output is a number.
///
/// # Errors
/// It cannot be started, failed, or said no number: with what it said.
pub async fn ask(argv: &[Arc<str>], wants_number: bool) -> Result<Measured, String> {
    let Some((program, arguments)) = argv.split_first() else { return Err("no program".to_owned()) };
    let mut command = Command::new(&**program);
    command.args(arguments.iter().map(|word| &**word)).env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut group = Group { leader, child };
    let (out, err, status) = tokio::join!(read(stdout), read(stderr), group.child.wait());
    // It ended, and whoever has its output too: its number may be another's by now.
    group.leader = None;
    let status = status.map_err(|error| error.to_string())?;
    let out = String::from_utf8_lossy(&out);
    if !status.success() {
        let err = String::from_utf8_lossy(&err);
        let said = [err.trim(), out.trim()].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        let line = said.lines().last().unwrap_or_default();
        return Err(if line.is_empty() { status.to_string() } else { format!("{status}: {line}") });
    }
    if !wants_number {
        return Ok(Measured::Fine);
    }
    number(&out).map(Measured::Number).ok_or_else(|| format!("its output is no number: {:.80?}", out.trim()))
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut buffer = [0; 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..n.min(OUTPUT_BYTES_MAX - kept.len())]);
    }
    kept
}
