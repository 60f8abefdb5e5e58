//! Schedules: what happened in an execution, step by step, in a form that can be kept and replayed.
//!
//! A schedule counts *all* steps, whatever the reduction made choice points of, so it does not depend on how it was
//! found. In text:
//!
//! ```text
//! lazytlb-schedule 1
//! program 5f0c3a9e11d2b877
//! trace 90b1d3c2a1f04e55
//! cpu0*17 cpu1*3 drain0 irq1.2 pick0=1 cpu1*4
//! ```
//!
//! `cpu0*17` is 17 steps of place 0 (agents are numbered after the CPUs), `drain0` the oldest buffered store of CPU 0
//! reaching memory, `irq1.2` vector 2 interrupting CPU 1, `nmi1.0` the same where interrupts are off, `pick0=1` a value picked by the program, `read0=1` a
//! load of CPU 0 that reads the store before the newest, where the memory model lets it choose. `program` names what the
//! schedule is for, `trace` is a hash of all that the steps did; a schedule that does not fit either is refused.

use core::fmt;
use core::str::FromStr;

use crate::state::Action;

/// What happened, in runs of equal actions.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// What program it is for: a hash of its text and of all that shapes its execution.
    pub program: u64,
    /// A hash of what the steps did.
    pub trace: u64,
    runs: Vec<(Event, u32)>,
    /// The line and column of each run in the text that it was read from; none if it was not read.
    places: Vec<(usize, usize)>,
}

/// Where it was read is no part of what it is.
impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        (self.program, self.trace, &self.runs) == (other.program, other.trace, &other.runs)
    }
}

impl Eq for Schedule {}

/// A schedule's end at some moment, to cut it there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    runs: usize,
    last: Option<(Event, u32)>,
}

/// An action, with the value that was picked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Event {
    Did(Action),
    Picked(u8, u8),
    Read(u8, u8),
}

impl Schedule {
    pub(crate) fn push(&mut self, event: Event) {
        match self.runs.last_mut() {
            Some((last, count)) if *last == event => *count += 1,
            _ => self.runs.push((event, 1)),
        }
    }

    /// How often the execution went from one place to another, was interrupted, or had a store drained: a measure of
    /// how hard it is to read.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// What schedules of a program in a setting are for: a number that changes with either, told by their texts.
    pub fn fingerprint(program: &str, setting: &str) -> u64 {
        // FNV-1a: stable from build to build, which std's hasher does not promise. Each text from a basis of its own.
        let of = |basis: u64, text: &str| {
            text.bytes().fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        };
        of(0xcbf2_9ce4_8422_2325, program) ^ of(0x9ae1_6a3b_2f90_404f, setting)
    }

    /// How many steps there are.
    pub fn steps(&self) -> u64 {
        self.runs.iter().map(|&(_, count)| u64::from(count)).sum()
    }

    pub(crate) fn with_trace(&self, trace: u64) -> Schedule {
        Schedule { trace, ..self.clone() }
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { runs: self.runs.clone(), run: 0, done: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// The line and column of a run, or of the last if there are not so many; where steps begin if none was read.
    pub(crate) fn place(&self, run: usize) -> (usize, usize) {
        self.places.get(run).or(self.places.last()).copied().unwrap_or((4, 1))
    }

    /// What has happened so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark { runs: self.runs.len(), last: self.runs.last().copied() }
    }

    /// Forgets what happened since.
    pub(crate) fn go_back(&mut self, mark: Mark) {
        self.runs.truncate(mark.runs);
        if let (Some(last), Some(then)) = (self.runs.last_mut(), mark.last) {
            *last = then;
        }
    }
}

/// Where a replay is.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    runs: Vec<(Event, u32)>,
    run: usize,
    done: u32,
}

impl Cursor {
    fn advance(&mut self) -> Option<Event> {
        let &(event, count) = self.runs.get(self.run)?;
        self.done += 1;
        if self.done == count {
            self.run += 1;
            self.done = 0;
        }
        Some(event)
    }

    pub(crate) fn next(&mut self) -> Option<Action> {
        match self.advance()? {
            Event::Did(action) => Some(action),
            Event::Picked(..) | Event::Read(..) => None,
        }
    }

    pub(crate) fn next_pick(&mut self) -> Option<(u8, u8)> {
        match self.advance()? {
            Event::Picked(place, value) => Some((place, value)),
            Event::Did(_) | Event::Read(..) => None,
        }
    }

    pub(crate) fn next_read(&mut self) -> Option<(u8, u8)> {
        match self.advance()? {
            Event::Read(place, age) => Some((place, age)),
            Event::Did(_) | Event::Picked(..) => None,
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.run == self.runs.len()
    }

    /// The run of the step that was asked for last.
    pub(crate) fn asked(&self) -> usize {
        if self.done == 0 { self.run.saturating_sub(1) } else { self.run }
    }

    /// The run of the step that is asked for next.
    pub(crate) fn next_run(&self) -> usize {
        self.run
    }
}

const MAGIC: &str = "lazytlb-schedule 1";

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}\nprogram {:016x}\ntrace {:016x}", self.program, self.trace)?;
        for (index, (event, count)) in self.runs.iter().enumerate() {
            let gap = match index {
                0 => "",
                _ if index % 16 == 0 => "\n",
                _ => " ",
            };
            f.write_str(gap)?;
            match event {
                Event::Did(Action::Step(place) | Action::Pick(place) | Action::Read(place)) => write!(f, "cpu{place}")?,
                Event::Did(Action::Irq(place, vector)) => write!(f, "irq{place}.{vector}")?,
                Event::Did(Action::Nmi(place, vector)) => write!(f, "nmi{place}.{vector}")?,
                Event::Did(Action::Drain(place)) => write!(f, "drain{place}")?,
                Event::Picked(place, value) => write!(f, "pick{place}={value}")?,
                Event::Read(place, age) => write!(f, "read{place}={age}")?,
            }
            if *count > 1 {
                write!(f, "*{count}")?;
            }
        }
        writeln!(f)
    }
}

/// A schedule that cannot be read, or does not fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduleError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl core::error::Error for ScheduleError {}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        let error = |line: usize, column: usize, message: &str| ScheduleError { line, column, message: message.into() };
        let mut lines = text.lines().enumerate();
        match lines.next() {
            Some((_, MAGIC)) => {}
            Some((_, other)) if other.starts_with("lazytlb-schedule ") => {
                return Err(error(1, 18, "this version of the format is not known; expected 1"));
            }
            _ => return Err(error(1, 1, "not a schedule: expected `lazytlb-schedule 1`")),
        }
        let mut header = |name: &str| {
            let (number, line) = lines.next().unwrap_or((text.lines().count(), ""));
            let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
            let value = value.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            value.ok_or_else(|| error(number + 1, 1, &format!("expected `{name}` and 16 hexadecimal digits")))
        };
        let mut schedule = Schedule { program: header("program")?, trace: header("trace")?, ..Schedule::default() };
        for (number, line) in lines {
            for word in line.split_whitespace() {
                let column = word.as_ptr().addr() - line.as_ptr().addr() + 1;
                let run = parse_run(word).ok_or_else(|| {
                    error(
                        number + 1,
                        column,
                        &format!(
                            "`{word}` is no step; expected cpuN, drainN, irqN.V, nmiN.V, pickN=V or readN=V, and *COUNT"
                        ),
                    )
                })?;
                schedule.runs.push(run);
                schedule.places.push((number + 1, column));
            }
        }
        Ok(schedule)
    }
}

fn parse_run(word: &str) -> Option<(Event, u32)> {
    let (event, count) = match word.split_once('*') {
        Some((event, count)) => (event, count.parse().ok().filter(|&count| count > 0)?),
        None => (word, 1),
    };
    let event = if let Some(place) = event.strip_prefix("cpu") {
        Event::Did(Action::Step(place.parse().ok()?))
    } else if let Some(place) = event.strip_prefix("drain") {
        Event::Did(Action::Drain(place.parse().ok()?))
    } else if let Some(rest) = event.strip_prefix("irq") {
        let (place, vector) = rest.split_once('.')?;
        Event::Did(Action::Irq(place.parse().ok()?, vector.parse().ok()?))
    } else if let Some(rest) = event.strip_prefix("nmi") {
        let (place, vector) = rest.split_once('.')?;
        Event::Did(Action::Nmi(place.parse().ok()?, vector.parse().ok()?))
    } else if let Some(rest) = event.strip_prefix("read") {
        let (place, age) = rest.split_once('=')?;
        Event::Read(place.parse().ok()?, age.parse().ok()?)
    } else {
        let (place, value) = event.strip_prefix("pick")?.split_once('=')?;
        Event::Picked(place.parse().ok()?, value.parse().ok()?)
    };
    Some((event, count))
}
