//! What an execution is, apart from memory: places, tasks, who is about to do what.
//!
//! A *place* runs tasks: a CPU, or an agent, which is a place with one task and no interrupts. A *task* is a coroutine
//! with its own stack; the place it runs on may change.

use core::panic::Location;
use std::collections::VecDeque;

use crate::mix::{fold, term};
use crate::reduce::Summary;
use crate::verdict::Verdict;

/// What a place is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Not asked yet in this execution.
    Start,
    /// Read a word.
    Load { word: usize, local: bool },
    /// Write a word.
    Store { word: usize, local: bool },
    /// Read and write a word at once.
    Rmw { word: usize },
    /// A full barrier.
    Fence,
    /// Disable interrupts.
    IrqOff,
    /// Enable them.
    IrqOn,
    /// Send an interrupt.
    Ipi,
    /// Allocate or free.
    Heap,
    /// Begin a statement.
    Checkpoint,
    /// Go on after a look at others.
    Yield,
    /// Wait until a word that was read has changed.
    Wait,
    /// Wait for an interrupt.
    Idle,
    /// Do something while all other CPUs are stopped.
    Stop,
}

/// One thing that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// A place does its next step.
    Step(u8),
    /// A CPU takes an interrupt.
    Irq(u8, u8),
    /// A CPU's oldest buffered store reaches memory.
    Drain(u8),
    /// The running task picks one of several values.
    Pick(u8),
}

#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) agent: bool,
    pub(crate) task: usize,
    pub(crate) next: Next,
    pub(crate) irqs_on: bool,
    pub(crate) in_irq: u32,
    pub(crate) preempt_count: u32,
    /// Vectors that wait to be delivered, a bit each.
    pub(crate) pending: u32,
    pub(crate) online: bool,
    /// Stores on their way to memory, oldest first: word and value.
    pub(crate) buffer: VecDeque<(usize, u64)>,
}

impl Place {
    pub(crate) fn new(agent: bool, task: usize) -> Place {
        Place {
            agent,
            task,
            next: Next::Start,
            irqs_on: !agent,
            in_irq: 0,
            preempt_count: 0,
            pending: 0,
            online: true,
            buffer: VecDeque::new(),
        }
    }

    fn reset(&mut self, task: usize, online: bool) {
        self.task = task;
        self.next = Next::Start;
        self.irqs_on = !self.agent;
        self.in_irq = 0;
        self.preempt_count = 0;
        self.pending = 0;
        self.online = online;
        self.buffer.clear();
    }

    /// The lowest vector that can be delivered now. An interrupt finds the buffer drained: its entry is a barrier.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        let can = self.irqs_on && self.pending != 0 && self.buffer.is_empty();
        can.then(|| self.pending.trailing_zeros() as u8)
    }
}

/// A line of a task's shadow call stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) function: &'static str,
    pub(crate) at: &'static Location<'static>,
    pub(crate) irq: bool,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// Where it runs.
    pub(crate) place: Option<usize>,
    /// All that it has seen since its last checkpoint: its local state is a function of that.
    pub(crate) history: u64,
    /// Histories of what its interrupt handlers have interrupted.
    pub(crate) interrupted: u64,
    /// The words read since the wait began, while it watches.
    pub(crate) reads: Vec<usize>,
    pub(crate) watching: bool,
    /// Whether one of them has changed since.
    pub(crate) dirty: bool,
    pub(crate) round_start: u64,
    pub(crate) started: bool,
    pub(crate) calls: Vec<Call>,
}

impl Task {
    pub(crate) fn new(name: &str, pid: u32) -> Task {
        Task {
            name: name.to_owned(),
            pid,
            place: None,
            history: 0,
            interrupted: 0,
            reads: Vec::new(),
            watching: false,
            dirty: false,
            round_start: 0,
            started: false,
            calls: Vec::new(),
        }
    }

    fn reset(&mut self, id: usize) {
        self.place = None;
        self.history = term(id as u64, 0);
        self.interrupted = 0;
        self.reads.clear();
        self.watching = false;
        self.dirty = false;
        self.started = false;
        self.calls.clear();
    }
}

/// Why an execution is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Everybody is done or idle.
    Complete,
    /// An error was found.
    Error,
    /// The state was seen before.
    Pruned,
    /// The reduction learned something; the search starts again.
    Restart,
    /// The schedule to replay does not fit.
    Stale,
}

/// The mutable state of the machine, apart from memory.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) places: Vec<Place>,
    pub(crate) tasks: Vec<Task>,
    /// The task that each place starts with, and whether it is online.
    pub(crate) boot: Vec<(usize, bool)>,
    /// The place that runs now.
    pub(crate) running: usize,
    /// What the place that is resumed shall do.
    pub(crate) action: Action,
    pub(crate) steps: u64,
    /// How often a choice could have been made.
    pub(crate) points: u64,
    pub(crate) end: Option<End>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) findings: u64,
    pub(crate) summary: Summary,
    pub(crate) lost_ipis: u64,
}

impl State {
    pub(crate) fn new() -> State {
        State {
            places: Vec::new(),
            tasks: Vec::new(),
            boot: Vec::new(),
            running: 0,
            action: Action::Step(0),
            steps: 0,
            points: 0,
            end: None,
            verdicts: Vec::new(),
            findings: 0,
            summary: Summary::default(),
            lost_ipis: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        for (id, task) in self.tasks.iter_mut().enumerate() {
            task.reset(id);
        }
        for (id, place) in self.places.iter_mut().enumerate() {
            let (task, online) = self.boot[id];
            place.reset(task, online);
            self.tasks[task].place = Some(id);
        }
        self.steps = 0;
        self.points = 0;
        self.end = None;
        self.verdicts.clear();
        self.findings = 0;
        self.lost_ipis = 0;
    }

    pub(crate) fn me(&mut self) -> &mut Place {
        &mut self.places[self.running]
    }

    pub(crate) fn current(&mut self) -> &mut Task {
        let task = self.places[self.running].task;
        &mut self.tasks[task]
    }

    /// The running task saw `value` at a step of this sort.
    #[inline]
    pub(crate) fn observe(&mut self, sort: u64, value: u64) {
        let task = self.current();
        task.history = fold(fold(task.history, sort), value);
    }

    /// The running task has read a word: a waiting loop goes on when it changes.
    #[inline]
    pub(crate) fn watch(&mut self, word: usize) {
        let handler = self.me().in_irq > 0;
        let task = self.current();
        if task.watching && !handler && !task.reads.contains(&word) {
            task.reads.push(word);
        }
    }

    /// A word has changed: whoever waits for it may go on.
    #[inline]
    pub(crate) fn changed(&mut self, word: usize) {
        for task in &mut self.tasks {
            if task.watching && !task.dirty && task.reads.contains(&word) {
                task.dirty = true;
            }
        }
    }

    /// Whether the place can do its next step now.
    #[inline]
    pub(crate) fn enabled(&self, id: usize) -> bool {
        let place = &self.places[id];
        match place.next {
            Next::Fence | Next::Rmw { .. } | Next::Ipi | Next::Heap => place.buffer.is_empty(),
            Next::Wait => self.tasks[place.task].dirty,
            Next::Idle => false,
            Next::Stop => place.buffer.is_empty() && self.others_can_be_stopped(id),
            _ => true,
        }
    }

    fn others_can_be_stopped(&self, me: usize) -> bool {
        let stoppable = |place: &Place| place.agent || (place.irqs_on && place.in_irq == 0 && place.preempt_count == 0);
        self.places.iter().enumerate().all(|(id, place)| id == me || stoppable(place))
    }

    /// All that can happen now, the place that runs first.
    pub(crate) fn actions(&self, out: &mut Vec<Action>) {
        out.clear();
        let places = self.places.len();
        for offset in 0..places {
            let place =
                if self.running + offset < places { self.running + offset } else { self.running + offset - places };
            if self.enabled(place) {
                out.push(Action::Step(place as u8));
            }
        }
        for (id, place) in self.places.iter().enumerate() {
            if let Some(vector) = place.deliverable() {
                out.push(Action::Irq(id as u8, vector));
            }
        }
        for (id, place) in self.places.iter().enumerate() {
            if !place.buffer.is_empty() {
                out.push(Action::Drain(id as u8));
            }
        }
    }

    /// The context that runs: a task on its place, or an interrupt handler there. A bit for the summary.
    #[inline]
    pub(crate) fn context_bit(&self) -> u64 {
        let place = &self.places[self.running];
        1 << (2 * self.running + usize::from(place.in_irq > 0))
    }

    /// A hash of everything that the future depends on, apart from memory and objects.
    pub(crate) fn hash(&self, portable: impl Fn(u64) -> u64) -> u64 {
        let mut hash = self.findings;
        for (id, place) in self.places.iter().enumerate() {
            let flags = u64::from(place.irqs_on)
                | u64::from(place.online) << 1
                | u64::from(place.in_irq) << 8
                | u64::from(place.preempt_count) << 16
                | u64::from(place.pending) << 32;
            let mut one = fold(place.task as u64, flags);
            for &(word, value) in &place.buffer {
                one = fold(fold(one, word as u64), portable(value));
            }
            hash ^= term(id as u64, one);
        }
        for (id, task) in self.tasks.iter().enumerate() {
            let mut one =
                fold(fold(task.history, task.interrupted), u64::from(task.dirty) | u64::from(task.watching) << 1);
            if task.watching {
                one ^= task.reads.iter().fold(0, |sum: u64, &word| sum.wrapping_add(term(word as u64, 1)));
            }
            hash ^= term(id as u64 + 1000, one);
        }
        hash
    }
}
