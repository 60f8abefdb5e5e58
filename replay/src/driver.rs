//! From the events of a trace to what the switch path sees.
//!
//! The driver keeps who runs where, who shares an address space with whom, and what is known for certain. It feeds the
//! same steps to every strategy; the one that the traced kernel itself uses goes first, and what it does is compared
//! with the kernel's own word (see [`truth`](crate::truth)).
//!
//! Two things a trace does not say outright. *A switch that was lost* shows when a CPU's next event is by another task
//! than the one that was switched to: it is made up, and counted as inferred. *The end of an exit*: exit_mm comes soon
//! after `sched_process_exit`, the last mmput takes its time to unmap before it flushes. So the two are separate steps,
//! the second of which the flush shows, or the task's end at the latest.

mod lives;
mod switches;

use std::collections::VecDeque;
use std::io::Read;
use std::time::{Duration, Instant};

use lazytlb_sched_model::{Rules, Strategy};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::engine::{Action, Run, Slot, Step, engine};
use crate::event::{Comm, Event, Kind};
use crate::platform::{Counts, MOST_CPUS, each_load, forget_loads, has_loaded, power_on};
use crate::tasks::TasksFile;
use crate::text::{Lines, TraceError};
use crate::truth::Truth;

/// What is replayed, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The strategies that are counted.
    pub strategies: Vec<Strategy>,
    /// The machine's rules, one of [`Rules::SIMPLE`]. What is predicted is compared with the trace only under [`Rules::Ipi`], which are x86's.
    pub rules: Rules,
    /// Who the tasks at the start are.
    pub tasks: Option<TasksFile>,
}

impl Default for Options {
    fn default() -> Self {
        Options { strategies: Strategy::all().collect(), rules: Rules::Ipi, tasks: None }
    }
}

/// What a replay has found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Lines of the trace.
    pub lines: u64,
    /// Those that were events.
    pub events: u64,
    /// Switches in the trace.
    pub switches: u64,
    /// Switches that it has lost, made up from what came after.
    pub inferred_switches: u64,
    /// Events that were missing by its own word: how often.
    pub losses: u64,
    /// Lines that came before their time, and were put in order.
    pub reordered: u64,
    /// CPUs that were seen.
    pub cpus: usize,
    /// Tasks whose kind or address space had to be guessed.
    pub inferred_tasks: u64,
    /// From the first event to the last.
    pub traced: Duration,
    /// How long reading and replaying took.
    pub took: Duration,
    /// The kernel's own word, if the trace has it.
    pub truth: Option<Truth>,
    /// What each strategy has done.
    pub strategies: Vec<StrategyReport>,
}

/// What a strategy has done.
#[derive(Clone, Copy, Debug)]
pub struct StrategyReport {
    /// Which.
    pub strategy: Strategy,
    /// What.
    pub counts: Counts,
}

/// A task of the trace.
#[derive(Clone, Copy, Debug)]
struct Traced {
    slot: Slot,
    /// Its address space; none for a kernel thread, and for who has given it up.
    mm: Option<MmId>,
    /// The CPU that runs it.
    cpu: Option<u32>,
    /// The last user of its address space exits; the last put is still to come.
    dying: Option<MmId>,
    /// It was seen to change its address space, at that line, and has not told why yet.
    exec_at: Option<u64>,
    /// A kernel thread made it while the trace ran: it may become a user mode helper.
    helper: bool,
}

type MmId = u32;

/// An address space of the trace.
#[derive(Clone, Copy, Debug)]
struct TracedMm {
    users: u32,
    /// Whether who shares it is known and not guessed.
    certain: bool,
    /// It was there before the trace began: who shares it may be guessed wrongly.
    old: bool,
}

#[derive(Clone, Debug)]
struct Cpu {
    booted: bool,
    /// What runs: a task, by number; 0 is the CPU's own idle task.
    curr: u32,
    idle: Slot,
    /// It is known what the MMU is on.
    sure: bool,
    /// The address space of the last user task: that, if the MMU has not left it since.
    on: Option<MmId>,
    /// A switch whose load would come next.
    expected: Option<Expected>,
    /// A load by a flush, sent by another CPU at this time.
    interrupted_at: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    line: u64,
    time: u64,
    prev: u32,
    predicted: bool,
    known: bool,
    seen: bool,
    /// The address spaces before and after, where a guess says that they are two.
    guess: Option<(MmId, MmId)>,
}

/// How many events are held back to put lines in order.
const WINDOW: usize = 256;
/// How many steps are handed to the other strategies at a time.
const BATCH: usize = 1024;
/// How long the load of a switch may come after it.
const SWITCH_NS: u64 = 1_000_000;
/// How often preemption is disabled in a switch: once by the scheduler, once by the run queue's lock.
const IN_SWITCH: u8 = 2;
/// How long a flush may take to reach another CPU.
const FLUSH_NS: u64 = 200_000;

/// Replays a trace.
pub struct Replayer {
    tasks_file: Option<TasksFile>,
    cpus: Vec<Cpu>,
    tasks: FxHashMap<u32, Traced>,
    /// The address spaces, and the numbers that can be used again.
    mms: Vec<TracedMm>,
    free_mms: Vec<MmId>,
    /// Pairs that were seen to be two, smaller number first.
    apart: FxHashSet<(MmId, MmId)>,
    /// Address spaces by thread group, for tasks that were there at the start.
    groups: FxHashMap<u32, MmId>,
    free_slots: Vec<Slot>,
    next_slot: Slot,
    reference: Box<dyn Run>,
    others: Vec<(Strategy, Box<dyn Run>)>,
    batch: Vec<Step>,
    strategies: Vec<Strategy>,
    truth: Truth,
    has_truth: bool,
    compares: bool,
    report: Report,
    first: Option<u64>,
    last: u64,
}

impl core::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Replayer").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Replayer {
    /// A machine that nothing has happened on yet.
    ///
    /// # Panics
    /// If the rules are not among [`Rules::SIMPLE`].
    pub fn new(options: Options) -> Replayer {
        power_on();
        let Options { strategies, rules, tasks } = options;
        let others = strategies.iter().filter(|&&strategy| strategy != Strategy::Refcount);
        Replayer {
            tasks_file: tasks,
            cpus: Vec::new(),
            tasks: FxHashMap::default(),
            mms: Vec::new(),
            free_mms: Vec::new(),
            apart: FxHashSet::default(),
            groups: FxHashMap::default(),
            free_slots: Vec::new(),
            next_slot: 0,
            reference: engine(Strategy::Refcount, rules),
            others: others.map(|&strategy| (strategy, engine(strategy, rules))).collect(),
            batch: Vec::with_capacity(BATCH),
            strategies,
            truth: Truth::default(),
            has_truth: false,
            compares: rules == Rules::Ipi,
            report: Report {
                lines: 0,
                events: 0,
                switches: 0,
                inferred_switches: 0,
                losses: 0,
                reordered: 0,
                cpus: 0,
                inferred_tasks: 0,
                traced: Duration::ZERO,
                took: Duration::ZERO,
                truth: None,
                strategies: Vec::new(),
            },
            first: None,
            last: 0,
        }
    }

    /// Replays all of a trace. `progress` is told the number of lines read, now and then.
    ///
    /// # Errors
    /// If the text is no trace, or has no switches.
    pub fn run(mut self, source: impl Read, mut progress: impl FnMut(u64)) -> Result<Report, TraceError> {
        let started = Instant::now();
        let mut lines = Lines::new(source);
        let mut window: VecDeque<Event> = VecDeque::with_capacity(WINDOW + 1);
        while let Some(event) = lines.next() {
            let mut event = event?;
            if let Kind::Lost { .. } = event.kind {
                event.time = window.back().map_or(self.last, |last| last.time);
            }
            if let Kind::Exec { pid, old_pid } = event.kind
                && pid != old_pid
            {
                keep_old_number(&mut window, &mut event, pid, old_pid);
            }
            self.report.reordered += u64::from(insert(&mut window, event));
            if window.len() > WINDOW
                && let Some(event) = window.pop_front()
            {
                self.event(&event)?;
            }
            const BETWEEN: u64 = 1 << 16;
            if lines.lines().is_multiple_of(BETWEEN) {
                progress(lines.lines());
            }
        }
        while let Some(event) = window.pop_front() {
            self.event(&event)?;
        }
        if self.report.switches == 0 {
            return Err(TraceError::NoSwitches);
        }
        self.report.lines = lines.lines();
        self.report.events = lines.events();
        Ok(self.finish(started))
    }

    fn finish(mut self, started: Instant) -> Report {
        self.flush_batch();
        let now = self.last;
        for strategy in &self.strategies {
            let of = self.others.iter().find(|(other, _)| other == strategy);
            let counts = of.map_or_else(|| self.reference.counts(now), |(_, engine)| engine.counts(now));
            self.report.strategies.push(StrategyReport { strategy: *strategy, counts });
        }
        self.report.cpus = self.cpus.iter().filter(|cpu| cpu.booted).count();
        self.report.traced = Duration::from_nanos(now - self.first.unwrap_or(now));
        self.report.truth = (self.has_truth && self.compares).then_some(self.truth);
        self.report.took = started.elapsed();
        self.report
    }

    /// Does a step.
    fn act(&mut self, time: u64, cpu: u32, action: Action) {
        if self.batch.len() == BATCH {
            self.flush_batch();
        }
        let step = Step { time, cpu, action };
        self.batch.push(step);
        self.reference.step(step);
    }

    fn flush_batch(&mut self) {
        for (_, engine) in &mut self.others {
            engine.steps(&self.batch);
        }
        forget_loads();
        self.batch.clear();
    }

    /// Does a step and says whether it loaded a root on its own CPU. Loads on others are noted there.
    fn act_and_see(&mut self, event: &Event, action: Action) -> bool {
        forget_loads();
        self.act(event.time, event.cpu, action);
        let cpus = &mut self.cpus;
        each_load(|cpu| {
            if cpu != event.cpu as usize {
                cpus[cpu].interrupted_at = Some((event.time, event.line));
            }
        });
        has_loaded(event.cpu)
    }

    fn event(&mut self, event: &Event) -> Result<(), TraceError> {
        if event.cpu as usize >= MOST_CPUS {
            let message = format!("CPU {}: at most {MOST_CPUS} CPUs are supported", event.cpu);
            return Err(TraceError::Line { line: event.line, column: 1, message });
        }
        if let Kind::Lost { cpu } = event.kind {
            self.lost(cpu);
            return Ok(());
        }
        if event.time < self.last {
            let message = format!("more than {WINDOW} events too late: a trace is in the order of time");
            return Err(TraceError::Line { line: event.line, column: 1, message });
        }
        self.first.get_or_insert(event.time);
        self.last = event.time;
        self.cpu_is_there(event);
        if self.is_load_of_switch(event) {
            return Ok(());
        }
        self.overdue(event);
        let curr = self.cpus[event.cpu as usize].curr;
        let still_switching = event.kind == Kind::Other
            && self.cpus[event.cpu as usize].expected.is_some_and(|expected| expected.prev == event.pid);
        if still_switching {
            return Ok(());
        }
        self.settle(event);
        let (runs, comm) = runs(event);
        if runs != curr {
            self.report.inferred_switches += 1;
            self.switch(event, curr, runs, comm);
        }
        match event.kind {
            Kind::Switch { prev, prev_comm: _, prev_dead, next, next_comm } => {
                self.report.switches += 1;
                self.traced_switch(event, prev, prev_dead, next, next_comm);
            }
            Kind::RootLoad => self.load(event),
            Kind::NewTask { child, shares_mm } => self.new_task(event, event.pid, child, Some(shares_mm)),
            Kind::Fork { parent, child } => self.new_task(event, parent, child, None),
            Kind::Exec { pid, old_pid } if old_pid == runs => self.exec(event, pid, old_pid),
            Kind::Exit { pid } if pid == runs => self.exit(event, pid),
            // What a task does to itself it does while it runs: such a line is damaged.
            Kind::Exec { .. } | Kind::Exit { .. } => {}
            Kind::Lost { .. } | Kind::Other => {}
        }
        Ok(())
    }

    // CPUs.

    fn cpu_is_there(&mut self, event: &Event) {
        let index = event.cpu as usize;
        while self.cpus.len() <= index {
            let idle = self.new_slot();
            self.cpus.push(Cpu {
                booted: false,
                curr: 0,
                idle,
                sure: false,
                on: None,
                expected: None,
                interrupted_at: None,
            });
        }
        if !self.cpus[index].booted {
            self.cpus[index].booted = true;
            let idle = self.cpus[index].idle;
            self.act(event.time, event.cpu, Action::Boot(idle));
            let (runs, comm) = runs(event);
            if runs != 0 {
                self.switch(event, 0, runs, comm);
            }
        }
    }

    fn lost(&mut self, cpu: Option<u32>) {
        self.report.losses += 1;
        for (index, state) in self.cpus.iter_mut().enumerate() {
            if cpu.is_none_or(|cpu| cpu as usize == index) {
                state.sure = false;
                state.expected = None;
                state.interrupted_at = None;
            }
        }
    }
}

/// The task that an event shows running, before what the event says happens.
fn runs(event: &Event) -> (u32, Comm) {
    match event.kind {
        Kind::Switch { prev, prev_comm, .. } => (prev, prev_comm),
        _ => (event.pid, event.comm),
    }
}

/// A thread that execs has its leader's number some events before `sched_process_exec` says so: they are told under its
/// own.
fn keep_old_number(window: &mut VecDeque<Event>, exec: &mut Event, pid: u32, old_pid: u32) {
    let before = window.iter_mut().rev().filter(|event| event.cpu == exec.cpu);
    for event in before.take_while(|event| event.pid == pid && !matches!(event.kind, Kind::Switch { .. })) {
        event.pid = old_pid;
    }
    exec.pid = old_pid;
}

/// Puts an event where its time belongs. Says whether others had to make way.
fn insert(window: &mut VecDeque<Event>, event: Event) -> bool {
    let later = window.iter().rev().take_while(|other| other.time > event.time).count();
    if later == 0 {
        window.push_back(event);
        return false;
    }
    window.insert(window.len() - later, event);
    true
}
