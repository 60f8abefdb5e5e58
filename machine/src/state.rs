//! What an execution is, apart from memory: places, tasks, who is about to do what.
//!
//! A *place* runs tasks: a CPU, or an agent, which is a place with one task and no interrupts. A *task* is a coroutine
//! with its own stack; the place it runs on may change.

use core::panic::Location;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::arena::Arena;
use crate::flow::Flow;
use crate::history::History;
use crate::mix::{fold, term};
use crate::reduce::{Summary, Who};
use crate::symmetry::Order;
use crate::verdict::Verdict;

/// What a place is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Begin the task that the place boots with, and do its first step.
    Start,
    /// Read a word.
    Load { word: usize, local: bool },
    /// Write a word.
    Store { word: usize, local: bool },
    /// Read and write a word at once.
    Rmw { word: usize },
    /// The same between two full fences; only under [`MemoryModel::Weak`](crate::MemoryModel::Weak).
    FullRmw { word: usize },
    /// A full barrier.
    Fence,
    /// A fence, full or not; only under [`MemoryModel::Weak`](crate::MemoryModel::Weak).
    Order { full: bool },
    /// Disable interrupts.
    IrqOff,
    /// Enable them.
    IrqOn,
    /// Disable preemption.
    PreemptOff,
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

impl Next {
    /// What it is called, without the word that it is about.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            // A start is one with the first step, and without one if the task idles at once.
            Next::Start | Next::Idle => "idle",
            Next::Load { .. } => "load",
            Next::Store { .. } => "store",
            Next::Rmw { .. } | Next::FullRmw { .. } => "rmw",
            Next::Fence | Next::Order { .. } => "fence",
            Next::IrqOff => "disable interrupts",
            Next::IrqOn => "enable interrupts",
            Next::PreemptOff => "disable preemption",
            Next::Ipi => "send an interrupt",
            Next::Heap => "allocate or free",
            Next::Checkpoint => "begin a statement",
            Next::Yield => "poll",
            Next::Wait => "wait",
            Next::Stop => "stop the machine",
        }
    }

    /// The word that it is about, if there is one.
    pub(crate) fn word(self) -> Option<usize> {
        match self {
            Next::Load { word, .. } | Next::Store { word, .. } | Next::Rmw { word } | Next::FullRmw { word } => {
                Some(word)
            }
            _ => None,
        }
    }
}

/// Contexts of a place, a bit each.
pub(crate) struct Context;

impl Context {
    pub(crate) const KINDS: usize = 4;
    pub(crate) const TASK: u64 = 1;
    pub(crate) const PREEMPTING: u64 = 2;
    pub(crate) const IRQ: u64 = 4;
    pub(crate) const NMI: u64 = 8;
}

/// One thing that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// A place does its next step.
    Step(u8),
    /// A CPU takes an interrupt.
    Irq(u8, u8),
    /// A CPU takes a non-maskable interrupt.
    Nmi(u8, u8),
    /// A CPU's oldest buffered store reaches memory.
    Drain(u8),
    /// The running task picks one of several values.
    Pick(u8),
    /// The load under way reads the store that has so many newer ones.
    Read(u8),
}

impl Action {
    /// The place that it is about.
    #[inline]
    pub(crate) fn place(self) -> usize {
        match self {
            Action::Step(place)
            | Action::Irq(place, _)
            | Action::Nmi(place, _)
            | Action::Drain(place)
            | Action::Pick(place)
            | Action::Read(place) => place.into(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) agent: bool,
    pub(crate) task: usize,
    pub(crate) next: Next,
    pub(crate) irqs_on: bool,
    pub(crate) in_irq: u32,
    pub(crate) preempt_count: u32,
    /// In a softirq, or with bottom halves off.
    pub(crate) in_softirq: u32,
    pub(crate) in_nmi: bool,
    /// Tasks that were preempted here and have not run since.
    pub(crate) preempted: u32,
    /// Vectors that wait to be delivered, a bit each.
    pub(crate) pending: u32,
    pub(crate) pending_nmis: u32,
    pub(crate) online: bool,
    /// Its last step commutes with all that others have done since.
    pub(crate) after_mover: bool,
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
            in_softirq: 0,
            in_nmi: false,
            preempted: 0,
            pending: 0,
            pending_nmis: 0,
            online: true,
            after_mover: false,
            buffer: VecDeque::new(),
        }
    }

    fn reset(&mut self, task: usize, online: bool) {
        self.task = task;
        self.next = Next::Start;
        self.irqs_on = !self.agent;
        self.in_irq = 0;
        self.preempt_count = 0;
        self.in_softirq = 0;
        self.in_nmi = false;
        self.preempted = 0;
        self.pending = 0;
        self.pending_nmis = 0;
        self.online = online;
        self.after_mover = false;
        self.buffer.clear();
    }

    /// Whether code here runs as an interrupt handler.
    pub(crate) fn in_handler(&self) -> bool {
        self.in_irq > 0 || self.in_nmi
    }
}

/// A line of a task's shadow call stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) function: &'static str,
    pub(crate) at: &'static Location<'static>,
    pub(crate) irq: bool,
}

/// What a wait loop knows of what it waits for.
#[derive(Clone, Default, Debug)]
pub(crate) struct Wait {
    /// The words read since its round began, while it watches.
    pub(crate) reads: Vec<usize>,
    pub(crate) watching: bool,
    /// Whether one of them has changed since.
    pub(crate) dirty: bool,
    /// Whether one was read that was not the newest.
    pub(crate) stale: bool,
    /// The task has polled in vain with what was not the newest: this time it reads the newest.
    pub(crate) newest: bool,
    pub(crate) round_start: History,
}

impl Wait {
    fn changed(&mut self, word: usize) {
        self.dirty |= self.watching && self.reads.contains(&word);
    }

    /// What is known of a wait that is over tells nothing apart.
    fn hash(&self, word: impl Fn(usize) -> u64) -> u64 {
        if !self.watching {
            return 0;
        }
        self.reads.iter().fold(1 + u64::from(self.dirty), |sum: u64, &read| sum.wrapping_add(term(word(read), 1)))
    }
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) name: Rc<str>,
    pub(crate) pid: u32,
    /// Where it runs.
    pub(crate) place: Option<usize>,
    /// All that it has seen since its last checkpoint: its local state is a function of that.
    pub(crate) history: History,
    /// What it was at that checkpoint.
    pub(crate) statement: History,
    /// Both, of what its interrupt handlers have interrupted.
    pub(crate) interrupted: Vec<(History, History)>,
    /// The wait that it is in, if it is in one.
    pub(crate) wait: Wait,
    /// The waits that its interrupt handlers have interrupted, which wait themselves.
    pub(crate) interrupted_waits: Vec<Wait>,
    pub(crate) calls: Vec<Call>,
}

/// A search goes back to a task as it was millions of times: its lists keep their memory.
impl Clone for Task {
    fn clone(&self) -> Task {
        let mut task = Task::new(&self.name, self.pid);
        task.clone_from(self);
        task
    }

    fn clone_from(&mut self, other: &Task) {
        let Task { name, pid, place, history, statement, interrupted, wait, interrupted_waits, calls } = other;
        (self.pid, self.place, self.history, self.statement) = (*pid, *place, *history, *statement);
        self.name.clone_from(name);
        self.interrupted.clone_from(interrupted);
        self.wait.clone_from(wait);
        self.interrupted_waits.clone_from(interrupted_waits);
        self.calls.clone_from(calls);
    }
}

impl Task {
    pub(crate) fn new(name: &str, pid: u32) -> Task {
        Task {
            name: name.into(),
            pid,
            place: None,
            history: History::default(),
            statement: History::default(),
            interrupted: Vec::new(),
            wait: Wait::default(),
            interrupted_waits: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn reset(&mut self) {
        self.place = None;
        self.history = History::default();
        self.statement = self.history;
        self.interrupted.clear();
        self.wait = Wait::default();
        self.interrupted_waits.clear();
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
    /// The word of the step under way, if that was no choice point because of what is known of the word.
    pub(crate) fused: Option<usize>,
    /// Whether states are compared, so that histories are kept.
    pub(crate) hashing: bool,
    pub(crate) flow: Flow,
}

/// The state at a choice point, to go back to: all but what a search learns.
#[derive(Default, Debug)]
pub(crate) struct Saved {
    places: Vec<Place>,
    tasks: Vec<Task>,
    running: usize,
    pub(crate) steps: u64,
    points: u64,
    verdicts: Vec<Verdict>,
    findings: u64,
    lost_ipis: u64,
    flow: Flow,
}

impl State {
    /// The state at the choice point that was come to, in memory that is not needed any more.
    pub(crate) fn save(&self, mut saved: Saved) -> Saved {
        saved.places.clone_from(&self.places);
        saved.tasks.clone_from(&self.tasks);
        saved.running = self.running;
        saved.steps = self.steps;
        saved.points = self.points;
        saved.verdicts.clone_from(&self.verdicts);
        saved.findings = self.findings;
        saved.lost_ipis = self.lost_ipis;
        saved.flow = self.flow;
        saved
    }

    /// Goes back to it.
    pub(crate) fn restore(&mut self, saved: &Saved) {
        self.places.clone_from(&saved.places);
        self.tasks.clone_from(&saved.tasks);
        self.running = saved.running;
        self.steps = saved.steps;
        self.points = saved.points;
        self.end = None;
        self.verdicts.clone_from(&saved.verdicts);
        self.findings = saved.findings;
        self.lost_ipis = saved.lost_ipis;
        self.flow = saved.flow;
    }

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
            fused: None,
            hashing: true,
            flow: Flow::default(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.tasks.iter_mut().for_each(Task::reset);
        self.flow = Flow::default();
        for (id, place) in self.places.iter_mut().enumerate() {
            let (task, online) = self.boot[id];
            place.reset(task, online);
            self.tasks[task].place = Some(id);
            self.flow.boot(id, place.irqs_on);
        }
        self.running = 0;
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
        if !self.hashing {
            return;
        }
        self.current().history.see(sort, value);
    }

    /// The same of a step on a word.
    #[inline]
    pub(crate) fn observe_word(&mut self, sort: u64, word: usize, value: u64, arena: &Arena) {
        if self.hashing {
            self.current().history.see_word(sort, word, value, arena);
        }
    }

    /// The running task has read a word: a waiting loop goes on when it changes.
    #[inline]
    pub(crate) fn watch(&mut self, word: usize) {
        let task = self.current();
        if task.wait.watching && !task.wait.reads.contains(&word) {
            task.wait.reads.push(word);
        }
    }

    /// A word has changed: whoever waits for it may go on.
    #[inline]
    pub(crate) fn changed(&mut self, word: usize) {
        for task in &mut self.tasks {
            task.wait.changed(word);
            task.interrupted_waits.iter_mut().for_each(|wait| wait.changed(word));
        }
    }

    /// The context that runs, a bit for the summary: on each place a task, a task while another is preempted there, an
    /// interrupt handler, or a handler of a non-maskable interrupt.
    #[inline]
    pub(crate) fn context_bit(&self) -> u64 {
        let place = &self.places[self.running];
        let kind = if place.in_nmi {
            Context::NMI
        } else if place.in_irq > 0 {
            Context::IRQ
        } else if place.preempted > 0 {
            Context::PREEMPTING
        } else {
            Context::TASK
        };
        kind << (Context::KINDS * self.running)
    }

    /// Who runs, for the summary.
    #[inline]
    pub(crate) fn who(&self) -> Who {
        let place = &self.places[self.running];
        let is_task = self.summary.tells_tasks && !place.in_handler();
        Who { contexts: self.context_bit(), tasks: u32::from(is_task) << place.task }
    }

    /// A hash of everything that the future depends on, apart from memory and objects, where things have these names.
    pub(crate) fn hash(&self, arena: &Arena, order: &Order) -> u64 {
        let names = arena.names();
        let mut hash = self.findings;
        for (id, place) in self.places.iter().enumerate() {
            let flags = u64::from(place.irqs_on)
                | u64::from(place.online) << 1
                | u64::from(self.flow.ticks(id)) << 2
                | u64::from(place.in_irq) << 8
                | u64::from(place.preempt_count) << 16
                | u64::from(place.pending) << 32;
            let more = u64::from(place.pending_nmis)
                | u64::from(place.in_nmi) << 32
                | u64::from(place.in_softirq) << 40
                | u64::from(place.preempted) << 48;
            let mut one = fold(fold(order.task(names, place.task), flags), more);
            for &(word, value) in &place.buffer {
                one = fold(fold(one, order.word(arena, word)), order.value(arena, word, value));
            }
            hash ^= term(id as u64, one);
        }
        for (id, task) in self.tasks.iter().enumerate() {
            let mut one = fold(task.history.named(arena, order), task.statement.named(arena, order));
            for (history, statement) in &task.interrupted {
                one = fold(fold(one, history.named(arena, order)), statement.named(arena, order));
            }
            for wait in core::iter::once(&task.wait).chain(&task.interrupted_waits) {
                one = fold(one, wait.hash(|word| order.word(arena, word)));
            }
            hash ^= term(order.task(names, id) + 1000, one);
        }
        hash
    }
}
