//! What is kept for reports, in a replay that records: call traces, tracks, and a line for each step.

use core::panic::Location;

use lazytlb_kasan::{Addr, Frame, Report, Title, Track};

use crate::machine::Machine;
use crate::mix::fold;
use crate::state::State;
use crate::step::Order;

/// One step, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogLine {
    /// When, counted in steps of the machine.
    pub step: u64,
    /// The CPU, or the agent, that did it.
    pub place: usize,
    /// The task that ran there.
    pub task: String,
    /// In which function.
    pub function: &'static str,
    /// What.
    pub what: String,
}

impl Machine {
    /// The innermost function that runs, as far as the program has said.
    pub fn function(&self) -> &'static str {
        self.state.borrow_mut().current().calls.last().map_or("the program", |call| call.function)
    }

    pub(crate) fn name_of(&self, word: usize) -> String {
        self.name_of_addr(self.addr_of(word))
    }

    pub(crate) fn name_of_addr(&self, addr: Addr) -> String {
        let kasan = self.kasan.borrow();
        match kasan.object_at(addr) {
            Some(object) => {
                let index = object.index;
                let offset = addr.0 - object.addr.0;
                let offset = if offset == 0 { String::new() } else { format!("+{offset}") };
                format!("{}[{index}]{offset}", object.name)
            }
            None => addr.to_string(),
        }
    }

    /// A value for people: a pointer by the name of what it points at.
    pub(crate) fn show(&self, value: u64) -> String {
        match self.arena.offset(value) {
            Some(_) => format!("&{}", self.name_of_ptr(core::ptr::without_provenance::<u8>(value as usize))),
            None => format!("{value:#x}"),
        }
    }

    /// Adds a line to the log, and to the hash of the trace.
    #[inline]
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if self.recording.get() {
            self.note_slowly(what());
        }
    }

    #[cold]
    fn note_slowly(&self, what: String) {
        let state = &mut *self.state.borrow_mut();
        self.log_line(state, state.running, what);
    }

    /// A line about something that happened at `place`.
    pub(crate) fn log_line(&self, state: &State, place: usize, what: String) {
        let task = &state.tasks[state.places[place].task];
        let hash = what.bytes().fold(fold(self.tracing.get(), place as u64), |hash, byte| fold(hash, u64::from(byte)));
        self.tracing.set(hash);
        let function = task.calls.last().map_or("", |call| call.function);
        self.log.borrow_mut().push(LogLine { step: state.steps, place, task: task.name.to_string(), function, what });
    }

    #[inline]
    pub(crate) fn trace(&self, what: impl FnOnce(String) -> String, word: usize, order: Order) {
        if self.recording.get() {
            let label = order.at.label;
            let label = if label.is_none() { String::new() } else { format!(" ({})", label.name()) };
            self.note_slowly(format!("{}{label}", what(self.name_of(word))));
        }
    }

    /// Who runs now, with its call trace: the access at `at` innermost.
    pub(crate) fn track(&self, at: &'static Location<'static>) -> Track {
        let mut state = self.state.borrow_mut();
        let (step, cpu) = (state.steps, state.running);
        let task = state.current();
        // The innermost frame says where the access is, the others where their functions begin.
        let mut frames: Vec<Frame> = Vec::with_capacity(task.calls.len());
        for (depth, call) in task.calls.iter().rev().enumerate() {
            let at = if depth == 0 { at } else { call.at };
            frames.push(Frame { function: call.function, file: at.file(), line: at.line(), irq: call.irq });
        }
        if frames.is_empty() {
            frames.push(Frame { function: "(program)", file: at.file(), line: at.line(), irq: false });
        }
        Track { pid: task.pid, comm: task.name.to_string(), cpu, step, frames }
    }

    /// Writes the report of a bad access, a bad free or a broken rule, while recording.
    pub(crate) fn write_report(&self, title: Title, addr: Addr, at: &'static Location<'static>) {
        let is_written = self.report.borrow().is_some() && !self.report_yields.get();
        if !self.recording.get() || is_written {
            return;
        }
        let by = self.track(at);
        let kasan = self.kasan.borrow();
        let report = Report { kasan: &kasan, title, addr, by: &by, notes: &[] }.to_string();
        *self.report.borrow_mut() = Some(report);
        self.report_yields.set(false);
    }

    /// As [`report_rule`](Self::report_rule), of a finding: the first one's is kept, until an error has one.
    pub fn report_finding<T>(
        &self,
        title: &'static str,
        action: &'static str,
        pointer: *const T,
        at: &'static Location<'static>,
    ) {
        if self.report.borrow().is_none() {
            self.report_rule(title, action, pointer, at);
            self.report_yields.set(true);
        }
    }

    /// Writes the report of a broken rule that is not the allocator's: `title` after `BUG: KASAN:`, `action` for what
    /// was done.
    pub fn report_rule<T>(
        &self,
        title: &'static str,
        action: &'static str,
        pointer: *const T,
        at: &'static Location<'static>,
    ) {
        if let Some(word) = self.arena.index(pointer.addr()) {
            self.write_report(Title::Rule { title, action }, self.addr_of(word), at);
        }
    }
}
