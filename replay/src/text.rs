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
use crate::platform::MOST_CPUS;

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
            TraceError::NoSwitches => f.write_str(
                "the trace has no sched_switch events; record at least those (`perf record -e sched:sched_switch -a`)",
            ),
        }
    }
}

impl core::error::Error for TraceError {}

/// Opens a trace, gzipped or not: its first two bytes say which.
///
/// # Errors
/// If it cannot be opened.
pub fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    reader(File::open(path)?)
}

/// As [`open`], for what is open already.
///
/// # Errors
/// If its first bytes cannot be read.
pub fn reader(source: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut plain = BufReader::with_capacity(CHUNK, source);
    let gzipped = plain.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzipped { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) })
}

/// The events of a trace, in the order of its lines; those left out that say nothing new.
pub struct Lines<R> {
    source: R,
    /// What has been read and not been looked at yet is `chunk[start..end]`.
    chunk: Vec<u8>,
    start: usize,
    end: usize,
    line: u64,
    /// Lines that were events.
    events: u64,
    /// Who the last event of each CPU has shown to run there.
    runs: Vec<u32>,
    failed: bool,
}

impl<R> fmt::Debug for Lines<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("line", &self.line).field("events", &self.events).finish_non_exhaustive()
    }
}

/// How much is read at a time. A longer line is no trace.
const CHUNK: usize = 1 << 18;

impl<R: Read> Lines<R> {
    /// The events in a text.
    pub fn new(source: R) -> Self {
        Lines { source, chunk: vec![0; CHUNK], start: 0, end: 0, line: 0, events: 0, runs: Vec::new(), failed: false }
    }

    /// How many lines have been read.
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// How many of them were events.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The next line, without its end; where it is in the chunk.
    fn next_line(&mut self) -> Result<Option<core::ops::Range<usize>>, TraceError> {
        let mut looked_at = 0;
        loop {
            let unread = &self.chunk[self.start..self.end];
            if let Some(length) = memchr(b'\n', &unread[looked_at..]) {
                let end = looked_at + length;
                // Line ends of other systems.
                let line = self.start..self.start + end - usize::from(unread[..end].ends_with(b"\r"));
                self.start += end + 1;
                self.line += 1;
                return Ok(Some(line));
            }
            looked_at = unread.len();
            if looked_at == CHUNK {
                let message = format!("a line of more than {CHUNK} bytes: not a trace");
                return Err(TraceError::Line { line: self.line + 1, column: 1, message });
            }
            self.chunk.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, looked_at);
            let read = self.source.read(&mut self.chunk[self.end..]);
            match read {
                Ok(0) if looked_at == 0 => return Ok(None),
                Ok(0) => {
                    self.start = self.end;
                    self.line += 1;
                    return Ok(Some(0..looked_at));
                }
                Ok(length) => self.end += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TraceError::Io { line: self.line + 1, error }),
            }
        }
    }

    /// Whether an event says more than that the task runs which is known to.
    fn says_something(&mut self, event: &Event) -> bool {
        let cpu = event.cpu as usize;
        if cpu >= MOST_CPUS {
            return true;
        }
        if self.runs.len() <= cpu {
            self.runs.resize(cpu + 1, u32::MAX);
        }
        let runs = if let Kind::Switch { next, .. } = event.kind { next } else { event.pid };
        let knew = core::mem::replace(&mut self.runs[cpu], runs) == runs;
        !(knew && event.kind == Kind::Other)
    }

    fn read(&mut self) -> Result<Option<Event>, TraceError> {
        while let Some(range) = self.next_line()? {
            let line = &self.chunk[range];
            let parsed = parse(line).map_err(|(at, message)| {
                let column = at.as_ptr().addr() - line.as_ptr().addr() + 1;
                TraceError::Line { line: self.line, column, message: message.into() }
            })?;
            let Some(event) = parsed else { continue };
            self.events += 1;
            if self.says_something(&event) {
                return Ok(Some(Event { line: self.line, ..event }));
            }
        }
        if self.events == 0 { Err(TraceError::NoTrace) } else { Ok(None) }
    }
}

impl<R: Read> Iterator for Lines<R> {
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
    let Head { pid, comm, tgid, cpu, flags, time, name, says } = head;
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
    let (hardirq, preempt_count) = (flags.is_some_and(is_hardirq), flags.and_then(preempt_count));
    Ok(Some(Event { line: 0, time, cpu, pid, comm, tgid, hardirq, preempt_count, kind }))
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
    flags: Option<&'a [u8]>,
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
        let mut rest = &line[open + 1..];
        let cpu = leading_number(&mut rest)?;
        rest = rest.strip_prefix(b"]")?;
        let mut flags = None;
        let time = loop {
            rest = skip_spaces(rest);
            if let Some(time) = leading_time(&mut rest) {
                break time;
            }
            // Flags: irqs-off, need-resched, hardirq/softirq, preempt-depth, and in newer kernels two more.
            let length = rest.iter().position(|&byte| byte == b' ')?;
            if flags.is_some() || !(4..=8).contains(&length) {
                return None;
            }
            flags = Some(&rest[..length]);
            rest = &rest[length..];
        };
        rest = skip_spaces(rest);
        // perf prints the count of its counter and the subsystem before the event: `1 sched:sched_switch:`.
        let (mut start, mut end) = (0, 0);
        loop {
            match rest.get(end)? {
                b':' if matches!(rest.get(end + 1), None | Some(b' ')) => break,
                b':' | b' ' => start = end + 1,
                _ => {}
            }
            end += 1;
        }
        let (task, tgid) = thread_group(line[..open].trim_ascii_end());
        let (pid, comm) = pid(task)?;
        Some(Head { pid, comm, tgid, cpu, flags, time, name: &rest[start..end], says: &rest[end + 1..] })
    }
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|&&byte| byte == b' ').count()..]
}

/// Takes a number off the text.
fn leading_number(text: &mut &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = decimal(&text[..digits])?;
    *text = &text[digits..];
    Some(number)
}

/// Takes `seconds.fraction:` off the text, if that is how it begins; in nanoseconds.
fn leading_time(text: &mut &[u8]) -> Option<u64> {
    let (mut seconds, mut at) = (0_u64, 0);
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        seconds = seconds * 10 + u64::from(digit - b'0');
        at += 1;
    }
    const MOST_DIGITS: usize = 10;
    if at == 0 || at > MOST_DIGITS || text.get(at) != Some(&b'.') {
        return None;
    }
    at += 1;
    let (mut nanoseconds, mut unit) = (seconds * 1_000_000_000, 100_000_000);
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        nanoseconds += u64::from(digit - b'0') * unit;
        unit /= 10;
        at += 1;
    }
    if text.get(at) != Some(&b':') {
        return None;
    }
    *text = &text[at + 1..];
    Some(nanoseconds)
}

/// Whether the third flag says so.
fn is_hardirq(flags: &[u8]) -> bool {
    matches!(flags.get(2), Some(b'h' | b'H' | b'z' | b'Z'))
}

/// The fourth flag: a digit, or a dot for zero and for kernels that do not count.
fn preempt_count(flags: &[u8]) -> Option<u8> {
    flags.get(3).filter(|flag| flag.is_ascii_digit()).map(|digit| digit - b'0')
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

/// `sched_switch` as it nearly always looks, quickly.
fn usual_switch(says: &[u8]) -> Option<Kind> {
    const ARROW: &[u8] = b" ==> next_comm=";
    let (_, text) = trailing_digits(says);
    let text = text.strip_suffix(b"-").unwrap_or(text).strip_suffix(b" next_prio=")?;
    let (next, text) = trailing_digits(text);
    let text = text.strip_suffix(b" next_pid=")?;
    const LONGEST_NAME: usize = 15;
    let name = (0..=LONGEST_NAME.min(text.len())).find(|&length| text[..text.len() - length].ends_with(ARROW))?;
    let (text, next_comm) = text.split_at(text.len() - name);
    let text = &text[..text.len() - ARROW.len()];
    let state = text.iter().rev().take_while(|&&byte| byte != b'=').count();
    let (text, state) = text.split_at(text.len() - state);
    let (_, text) = trailing_digits(text.strip_suffix(b" prev_state=")?);
    let text = text.strip_suffix(b"-").unwrap_or(text).strip_suffix(b" prev_prio=")?;
    let (prev, text) = trailing_digits(text);
    let prev_comm = skip_spaces(text.strip_suffix(b" prev_pid=")?).strip_prefix(b"prev_comm=")?;
    Some(Kind::Switch {
        prev: decimal(prev)?,
        prev_comm: Comm::new(prev_comm),
        prev_dead: is_dead(state),
        next: decimal(next)?,
        next_comm: Comm::new(next_comm),
    })
}

/// The digits at the end of a text, and what is before them.
fn trailing_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (before, digits) = text.split_at(text.len() - digits);
    (digits, before)
}

/// `sched_switch` as the kernel prints it, or as libtraceevent's plugin does.
///
/// Read from its end: a name may contain anything, the fields behind it may not.
fn switch(says: &[u8]) -> Result<Kind, Wrong<'_>> {
    if let Some(kind) = usual_switch(says) {
        return Ok(kind);
    }
    const ARROW: &[u8] = b" ==> next_comm=";
    let arrow = || memchr::memrchr_iter(b'=', says).map(|at| at + 1).find(|&end| says[..end].ends_with(ARROW));
    if memchr::memrchr(b'=', says).is_some()
        && let Some(right) = arrow()
    {
        let mut left = &says[..right - ARROW.len()];
        let mut right = &says[right..];
        take_last(&mut right, b"next_prio=")?;
        let next = number(take_last(&mut right, b"next_pid=")?)?;
        let state = take_last(&mut left, b"prev_state=")?;
        take_last(&mut left, b"prev_prio=")?;
        let prev = number(take_last(&mut left, b"prev_pid=")?)?;
        let name = left.trim_ascii_start();
        return Ok(Kind::Switch {
            prev,
            prev_comm: Comm::new(name.strip_prefix(b"prev_comm=").unwrap_or(name)),
            prev_dead: is_dead(state),
            next,
            next_comm: Comm::new(right),
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
        preempt_count: None,
        kind: Kind::Lost { cpu },
    })
}

/// The value of the last field, which has this key; it is taken off the text.
fn take_last<'a>(text: &mut &'a [u8], key: &'static [u8]) -> Result<&'a [u8], Wrong<'a>> {
    let whole = text.trim_ascii_end();
    let start = memchr::memrchr(b' ', whole).map_or(0, |space| space + 1);
    let value = whole[start..].strip_prefix(key).ok_or((&whole[start..], "not the field that comes here"))?;
    *text = &whole[..start.saturating_sub(1)];
    Ok(value)
}

fn number(value: &[u8]) -> Result<u32, Wrong<'_>> {
    decimal(value).ok_or((value, "expected a number"))
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
    number(field(says, key)?.trim_ascii())
}

/// The number behind the last `key`: names before it may contain anything.
fn last_number_field<'a>(says: &'a [u8], key: &'static [u8]) -> Result<u32, Wrong<'a>> {
    let at = memmem::rfind(says, key).ok_or((says, "a field is missing that this event has"))?;
    number(word(&says[at + key.len()..]))
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
        const SAYS: &str =
            "prev_comm=a b prev_pid=7 prev_prio=120 prev_state=R+ ==> next_comm=x ==> y next_pid=9 next_prio=120";
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
