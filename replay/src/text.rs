//! Reads traces as kernel people have them: tracefs `trace`, `trace-cmd report`, `perf script`, systrace files; plain or
//! gzipped, old and new column layouts.
//!
//! A line is a task's name and number, perhaps its thread group in parentheses, the CPU in brackets, perhaps flags, a
//! time, the name of the event (perf puts the subsystem before it), and what it says. Lines that are none are skipped
//! and counted; a file in which no line is one is refused.

use core::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use memchr::{memchr, memchr_iter, memmem};

use crate::event::{Comm, Event, Kind};

/// A trace that cannot be read.
#[derive(Debug)]
pub enum TraceError {
    /// The file, or its compression, is broken.
    Io {
        /// The line that was being read, from 1.
        line: u64,
        /// What went wrong.
        error: io::Error,
    },
    /// A line that begins like one of a trace goes on as none.
    Line {
        /// Which, from 1.
        line: u64,
        /// Where in it, from 1.
        column: usize,
        /// What is wrong, and what was expected.
        message: String,
    },
    /// No line is one of a trace.
    NoTrace,
    /// There are no switches in it.
    NoSwitches,
}

impl TraceError {
    /// The error with the name of the file before it.
    pub fn in_file(&self, file: &str) -> String {
        match self {
            TraceError::Io { line, error } => format!("{file}:{line}:1: {error}"),
            TraceError::Line { line, column, message } => format!("{file}:{line}:{column}: {message}"),
            _ => format!("{file}:1:1: {self}"),
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::Io { line, error } => write!(f, "line {line}: {error}"),
            TraceError::Line { line, column, message } => write!(f, "line {line}, column {column}: {message}"),
            TraceError::NoTrace => f.write_str(
                "not a trace: expected the text of tracefs `trace`, `trace-cmd report` or `perf script`, plain or .gz",
            ),
            TraceError::NoSwitches => {
                f.write_str("the trace has no sched_switch events; record at least those (`perf record -e sched:sched_switch -a`)")
            }
        }
    }
}

impl core::error::Error for TraceError {}

/// Opens a trace, gzipped or not: its first two bytes say which.
///
/// # Errors
/// If it cannot be opened.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    reader(File::open(path)?)
}

/// As [`open`], for what is open already.
///
/// # Errors
/// If its first bytes cannot be read.
pub fn reader(source: impl Read + 'static) -> io::Result<Box<dyn BufRead>> {
    const BUFFER: usize = 1 << 18;
    let mut plain = BufReader::with_capacity(BUFFER, source);
    let gzipped = plain.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzipped {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain)))
    } else {
        Box::new(plain)
    })
}

/// The events of a trace, in the order of its lines.
pub struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    line: u64,
    /// Lines that were events.
    events: u64,
    failed: bool,
}

impl<R> fmt::Debug for Lines<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("line", &self.line).field("events", &self.events).finish_non_exhaustive()
    }
}

/// Longer lines are no trace.
const LONGEST: usize = 1 << 16;

impl<R: BufRead> Lines<R> {
    /// The events in a text.
    pub fn new(source: R) -> Self {
        Lines { source, buffer: Vec::new(), line: 0, events: 0, failed: false }
    }

    /// How many lines have been read.
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// How many of them were events.
    pub fn events(&self) -> u64 {
        self.events
    }

    fn read(&mut self) -> Result<Option<Event>, TraceError> {
        loop {
            self.buffer.clear();
            let read = self.source.by_ref().take(LONGEST as u64).read_until(b'\n', &mut self.buffer);
            let length = read.map_err(|error| TraceError::Io { line: self.line + 1, error })?;
            if length == 0 {
                return if self.events == 0 { Err(TraceError::NoTrace) } else { Ok(None) };
            }
            self.line += 1;
            if length == LONGEST {
                let message = format!("a line of more than {LONGEST} bytes: not a trace");
                return Err(TraceError::Line { line: self.line, column: 1, message });
            }
            let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            let parsed = parse(line).map_err(|(at, message)| {
                let column = at.as_ptr().addr() - line.as_ptr().addr() + 1;
                TraceError::Line { line: self.line, column, message: message.into() }
            })?;
            if let Some(event) = parsed {
                self.events += 1;
                return Ok(Some(Event { line: self.line, ..event }));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let event = self.read();
        self.failed = event.is_err();
        event.transpose()
    }
}

/// What is wrong with a line, and where.
type Wrong<'a> = (&'a [u8], &'static str);

/// What a line says, if it is one of a trace.
fn parse(line: &[u8]) -> Result<Option<Event>, Wrong<'_>> {
    if line.first() == Some(&b'#') {
        return Ok(None);
    }
    let Some(head) = Head::parse(line) else { return Ok(lost(line)) };
    let Head { pid, comm, tgid, cpu, hardirq, time, name, says } = head;
    let name = memchr(b':', name).map_or(name, |colon| &name[colon + 1..]);
    let kind = match name {
        b"sched_switch" => switch(says)?,
        b"task_newtask" => {
            let flags = hexadecimal(field(says, b" clone_flags=")?);
            let flags = flags.ok_or((says, "clone_flags is no hexadecimal number"))?;
            const CLONE_VM: u64 = 0x100;
            Kind::NewTask { child: number_field(says, b"pid=")?, shares_mm: flags & CLONE_VM != 0 }
        }
        b"sched_process_fork" => match parsed_fork(says) {
            Some((parent, child)) => Kind::Fork { parent, child },
            None => return Err((says, "sched_process_fork without pid= and child_pid=")),
        },
        b"sched_process_exec" => {
            let pid = last_number_field(says, b" pid=")?;
            Kind::Exec { pid, old_pid: last_number_field(says, b" old_pid=").unwrap_or(pid) }
        }
        b"sched_process_exit" => Kind::Exit { pid: last_number_field(says, b" pid=")? },
        b"tlb_flush" if memmem::find(says, b"flush on task switch").is_some() => Kind::RootLoad,
        _ => Kind::Other,
    };
    Ok(Some(Event { line: 0, time, cpu, pid, comm, tgid, hardirq, kind }))
}

/// `sched_process_fork` as the kernel prints it, or as libtraceevent's plugin does.
fn parsed_fork(says: &[u8]) -> Option<(u32, u32)> {
    let child = last_number_field(says, b" child_pid=").ok()?;
    let before_child = memmem::rfind(says, b" child_comm=")?;
    let parent = last_number_field(&says[..before_child], b" pid=").ok()?;
    Some((parent, child))
}

/// The columns before what the event says.
struct Head<'a> {
    pid: u32,
    comm: Comm,
    tgid: Option<u32>,
    cpu: u32,
    hardirq: bool,
    time: u64,
    name: &'a [u8],
    says: &'a [u8],
}

impl<'a> Head<'a> {
    fn parse(line: &'a [u8]) -> Option<Head<'a>> {
        // A name may have brackets in it too: the CPU's are those behind which the rest fits.
        memchr_iter(b'[', line).find_map(|open| Self::with_cpu_at(line, open))
    }

    fn with_cpu_at(line: &'a [u8], open: usize) -> Option<Head<'a>> {
        let close = open + memchr(b']', &line[open..])?;
        let cpu = decimal(&line[open + 1..close])?;
        let (task, tgid) = thread_group(line[..open].trim_ascii());
        let (pid, comm) = pid(task)?;
        let mut rest = line[close + 1..].trim_ascii_start();
        let mut hardirq = false;
        let time = loop {
            let end = memchr(b' ', rest).unwrap_or(rest.len());
            let word = &rest[..end];
            rest = rest[end..].trim_ascii_start();
            match word.strip_suffix(b":").and_then(nanoseconds) {
                Some(time) => break time,
                // Flags: irqs-off, need-resched, hardirq/softirq, preempt-depth, and in newer kernels two more.
                None if (4..=8).contains(&word.len()) && !hardirq => hardirq = is_hardirq(word),
                None => return None,
            }
            if rest.is_empty() {
                return None;
            }
        };
        // perf prints the count of its counter before the event: `1 sched:sched_switch:`.
        let colon = memmem::find(rest, b": ").or_else(|| rest.strip_suffix(b":").map(<[u8]>::len))?;
        let name = &rest[..colon];
        let name = name.iter().rposition(|&byte| byte == b' ').map_or(name, |space| &name[space + 1..]);
        Some(Head { pid, comm, tgid, cpu, hardirq, time, name, says: rest.get(colon + 1..)? })
    }
}

/// Whether the third flag says so.
fn is_hardirq(flags: &[u8]) -> bool {
    matches!(flags.get(2), Some(b'h' | b'H' | b'z' | b'Z'))
}

/// Splits `(12345)` or `(-----)` off.
fn thread_group(task: &[u8]) -> (&[u8], Option<u32>) {
    if let Some(inner) = task.strip_suffix(b")")
        && let Some(open) = memchr::memrchr(b'(', inner)
        && let group = inner[open + 1..].trim_ascii()
        && group.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
    {
        return (task[..open].trim_ascii_end(), decimal(group));
    }
    (task, None)
}

/// The number of a task: behind the last dash (ftrace), or the last word (perf), where it may be `group/task`.
fn pid(task: &[u8]) -> Option<(u32, Comm)> {
    let digits = task.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let start = task.len() - digits;
    let before = start.checked_sub(1).map(|index| task[index])?;
    let mut name = match before {
        b'-' | b' ' | b'\t' => &task[..start - 1],
        // The thread group comes before, and is a word of its own.
        b'/' => &task[..memchr::memrchr(b' ', &task[..start])?],
        _ => return None,
    };
    name = name.trim_ascii();
    Some((decimal(&task[start..])?, Comm::new(name)))
}

/// `sched_switch` as the kernel prints it, or as libtraceevent's plugin does.
fn switch(says: &[u8]) -> Result<Kind, Wrong<'_>> {
    if let Some(arrow) = memmem::rfind(says, b" ==> next_comm=") {
        let (left, right) = (&says[..arrow], &says[arrow + b" ==> next_comm=".len()..]);
        let next_at = memmem::rfind(right, b" next_pid=").ok_or((right, "sched_switch without next_pid="))?;
        let prev_at = memmem::rfind(left, b" prev_pid=").ok_or((left, "sched_switch without prev_pid="))?;
        let state = field(&left[prev_at..], b" prev_state=")?;
        let name = memmem::find(left, b"prev_comm=").map_or(&left[..0], |at| &left[at + b"prev_comm=".len()..prev_at]);
        return Ok(Kind::Switch {
            prev: number_field(&left[prev_at..], b" prev_pid=")?,
            prev_comm: Comm::new(name),
            prev_dead: is_dead(state),
            next: number_field(&right[next_at..], b" next_pid=")?,
            next_comm: Comm::new(&right[..next_at]),
        });
    }
    // comm:pid [prio] S ==> comm:pid [prio]
    let arrow = memmem::rfind(says, b" ==> ").ok_or((says, "sched_switch without ` ==> `"))?;
    let (left, right) = (&says[..arrow], &says[arrow + b" ==> ".len()..]);
    let side = |side: &'_ [u8]| {
        let end = memmem::rfind(side, b" [")?;
        let colon = memchr::memrchr(b':', &side[..end])?;
        Some((Comm::new(side[..colon].trim_ascii_start()), decimal(&side[colon + 1..end])?))
    };
    let (prev_comm, prev) = side(left).ok_or((left, "expected `comm:pid [prio]` before ` ==> `"))?;
    let (next_comm, next) = side(right).ok_or((right, "expected `comm:pid [prio]` after ` ==> `"))?;
    let state = left.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    Ok(Kind::Switch { prev, prev_comm, prev_dead: is_dead(state), next, next_comm })
}

/// Zombie or dead; more letters may follow.
fn is_dead(state: &[u8]) -> bool {
    matches!(state.first(), Some(b'X' | b'Z' | b'x'))
}

/// `CPU:1 [LOST 42 EVENTS]` of tracefs, `CPU:1 [42 EVENTS DROPPED]` of trace-cmd, perf's `PERF_RECORD_LOST`.
fn lost(line: &[u8]) -> Option<Event> {
    let is_lost = memmem::find(line, b"LOST").is_some() || memmem::find(line, b"EVENTS DROPPED").is_some();
    if !is_lost {
        return None;
    }
    let cpu = memmem::find(line, b"CPU:").and_then(|at| {
        let rest = &line[at + 4..];
        decimal(&rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()])
    });
    if cpu.is_none() && memmem::find(line, b"PERF_RECORD_LOST").is_none() {
        return None;
    }
    Some(Event {
        line: 0,
        time: 0,
        cpu: cpu.unwrap_or(0),
        pid: 0,
        comm: Comm::default(),
        tgid: None,
        hardirq: false,
        kind: Kind::Lost { cpu },
    })
}

/// The word behind the first `key`.
fn field<'a>(says: &'a [u8], key: &'static [u8]) -> Result<&'a [u8], Wrong<'a>> {
    let at = memmem::find(says, key).ok_or((says, "a field is missing that this event has"))?;
    Ok(word(&says[at + key.len()..]))
}

fn word(text: &[u8]) -> &[u8] {
    &text[..memchr(b' ', text).unwrap_or(text.len())]
}

fn number_field<'a>(says: &'a [u8], key: &'static [u8]) -> Result<u32, Wrong<'a>> {
    let value = field(says, key)?;
    decimal(value.trim_ascii()).ok_or((value, "expected a number"))
}

/// The number behind the last `key`: names before it may contain anything.
fn last_number_field<'a>(says: &'a [u8], key: &'static [u8]) -> Result<u32, Wrong<'a>> {
    let at = memmem::rfind(says, key).ok_or((says, "a field is missing that this event has"))?;
    let value = word(&says[at + key.len()..]);
    decimal(value.trim_ascii()).ok_or((value, "expected a number"))
}

fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 10 {
        return None;
    }
    digits.iter().try_fold(0_u32, |number, &byte| {
        byte.is_ascii_digit().then_some(())?;
        number.checked_mul(10)?.checked_add(u32::from(byte - b'0'))
    })
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

/// Seconds with a fraction, in nanoseconds.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let dot = memchr(b'.', text)?;
    let (seconds, fraction) = (&text[..dot], &text[dot + 1..]);
    if seconds.is_empty() || seconds.len() > 10 || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let digits = |text: &[u8]| {
        text.iter().try_fold(0_u64, |number, &byte| {
            byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
        })
    };
    let scale = 10_u64.pow(9 - fraction.len() as u32);
    Some(digits(seconds)? * 1_000_000_000 + digits(fraction)? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Event {
        parse(line.as_bytes()).unwrap().unwrap_or_else(|| panic!("not an event: {line}"))
    }

    fn switch_of(line: &str) -> (u32, u32, u32, bool, u32) {
        let event = one(line);
        let Kind::Switch { prev, next, prev_dead, .. } = event.kind else { panic!("{:?}", event.kind) };
        (event.cpu, event.pid, prev, prev_dead, next)
    }

    /// The layouts of several kernels and tools, names with all that a name may have.
    #[test]
    fn layouts() {
        const SAYS: &str = "prev_comm=a b prev_pid=7 prev_prio=120 prev_state=R+ ==> next_comm=x ==> y next_pid=9 next_prio=120";
        for line in [
            "            a b-7       [001] d..2.  1075.065004: sched_switch: ",
            "            a b-7       [001] d..2  1075.065004: sched_switch: ",
            "            a b-7       [001]  1075.065004: sched_switch: ",
            "            a b-7       (   5) [001] d..2.  1075.065004: sched_switch: ",
            "            a b-7       (-----) [001] d..2  1075.065004: sched_switch: ",
            "            [0] -7       [001] d..2.  1075.065004: sched_switch: ",
            "            a b     7 [001]  1075.065004: sched:sched_switch: ",
            "            a b     5/7 [001]  1075.065004:          1 sched:sched_switch: ",
            "            a b-7     [001]  1075.065004123: sched_switch:         ",
        ] {
            assert_eq!(switch_of(&format!("{line}{SAYS}")), (1, 7, 7, false, 9), "{line}");
        }
        let plugin = "  a:b-7  [001]  1075.065004: sched_switch:         a:b:7 [120] X ==> swapper/1:0 [120]";
        assert_eq!(switch_of(plugin), (1, 7, 7, true, 0));
    }

    #[test]
    fn other_events() {
        let base = "  sh-7  [003] d.h2. 12.5: ";
        let kind = |says: &str| one(&format!("{base}{says}")).kind;
        assert!(one(&format!("{base}irq_handler_entry: irq=1")).hardirq);
        assert_eq!(one(&format!("{base}irq_handler_entry: irq=1")).time, 12_500_000_000);
        let new = |says| kind(&format!("task_newtask: {says}"));
        assert_eq!(
            new("pid=8 comm=sh clone_flags=1200000 oom_score_adj=0"),
            Kind::NewTask { child: 8, shares_mm: false }
        );
        assert_eq!(new("pid=8 comm=sh clone_flags=4100 oom_score_adj=0"), Kind::NewTask { child: 8, shares_mm: true });
        assert_eq!(
            kind("sched_process_fork: comm=s pid=1 pid=7 child_comm=child_pid=3 child_pid=8"),
            Kind::Fork { parent: 7, child: 8 }
        );
        assert_eq!(kind("sched_process_exec: filename=/bin/x pid=7 old_pid=6"), Kind::Exec { pid: 7, old_pid: 6 });
        assert_eq!(kind("sched_process_exit: comm=x pid=1 pid=7 prio=120 group_dead=true"), Kind::Exit { pid: 7 });
        assert_eq!(kind("tlb_flush: pages:-1 reason:flush on task switch (0)"), Kind::RootLoad);
        assert_eq!(kind("tlb_flush: pages:1 reason:local MM shootdown (3)"), Kind::Other);
        let lost = |line: &str| parse(line.as_bytes()).unwrap().map(|event| event.kind);
        assert_eq!(lost("CPU:1 [LOST 42 EVENTS]"), Some(Kind::Lost { cpu: Some(1) }));
        assert_eq!(lost("CPU:12 [7 EVENTS DROPPED]"), Some(Kind::Lost { cpu: Some(12) }));
        assert_eq!(lost("some text"), None);
    }

    #[test]
    fn a_broken_event_is_refused_with_its_place() {
        let text = "# tracer: nop\n  sh-7  [000] d..2. 1.5: sched_switch: prev_comm=sh prev_pid=x prev_prio=1 prev_state=S ==> next_comm=y next_pid=1 next_prio=1\n";
        let error = Lines::new(text.as_bytes()).find_map(Result::err).unwrap();
        assert_eq!(error.in_file("t"), "t:2:62: expected a number");
        let error = Lines::new(&b"hello\nworld\n"[..]).find_map(Result::err).unwrap();
        assert!(error.in_file("t").starts_with("t:1:1: not a trace: expected"), "{error}");
    }
}
