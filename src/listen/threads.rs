//! CPU time of our own threads (proc(5): `/proc/self/task/TID/stat`).

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

/// Room for the fields up to stime, which are at most some two hundred bytes.
const STAT_LEN: usize = 512;

/// The calling thread's id.
pub fn current() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// CPU time of a thread of this process so far, the kernel's work for it included, to the tick (10 ms). None when it is gone.
pub fn cpu_time(thread: i32) -> Option<Duration> {
    let mut stat = [0; STAT_LEN];
    // One read: the file is made at the first.
    let len = File::open(format!("/proc/self/task/{thread}/stat")).ok()?.read(&mut stat).ok()?;
    let ticks = ticks_of(std::str::from_utf8(stat.get(..len)?).ok()?)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_micros(ticks.saturating_mul(1_000_000) / per_second))
}

/// utime and stime: the 14th and 15th field. The second, the thread's name, may hold blanks and brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let utime: u64 = fields.next()?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    utime.checked_add(stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let line = "7 (a) b (c)) R 1 2 3 4 5 6 7 8 9 10 100 23 0 0 20 0 1 0 5";
        assert_eq!(ticks_of(line), Some(123));
        assert_eq!(ticks_of("7 (x) R 1"), None);
    }

    #[test]
    fn a_thread_knows_its_own_and_a_missing_one_has_none() {
        let me = current();
        let before = cpu_time(me).expect("this thread");
        let mut sum = 0_u64;
        while cpu_time(me).expect("this thread") == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert_eq!(cpu_time(i32::MAX), None);
    }
}
