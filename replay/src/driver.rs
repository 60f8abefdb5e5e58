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

use std::collections::VecDeque;
use std::io::Read;
use std::time::{Duration, Instant};

use lazytlb_sched_model::{Rules, Strategy};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::engine::{Action, NewMm, Run, Slot, Step, engine};
use crate::event::{Comm, Event, Kind};
use crate::platform::{Counts, MOST_CPUS, each_load, forget_loads, has_loaded, power_on};
use crate::tasks::{TasksFile, has_kthread_name};
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

    // Switches.

    /// Whether this is the load that a switch makes: it comes while the task that is left is still named as running.
    fn is_load_of_switch(&mut self, event: &Event) -> bool {
        let cpu = &mut self.cpus[event.cpu as usize];
        match (&mut cpu.expected, event.kind) {
            (Some(expected), Kind::RootLoad)
                if expected.prev == event.pid
                    && !event.hardirq
                    && event.time <= expected.time + SWITCH_NS
                    && event.preempt_count.is_none_or(|count| count >= IN_SWITCH) =>
            {
                self.has_truth = true;
                expected.seen = true;
                true
            }
            _ => false,
        }
    }

    /// Whatever comes after a switch shows whether it has loaded a root.
    fn settle(&mut self, event: &Event) {
        let Some(expected) = self.cpus[event.cpu as usize].expected.take() else { return };
        if expected.known {
            self.truth.compare(expected.line, event.cpu, "switch", expected.predicted, expected.seen);
            return;
        }
        self.truth.unknown += 1;
        // What was guessed is known from now on, if the trace tells at all.
        if let Some((before, after)) = expected.guess.filter(|_| self.has_truth) {
            if expected.seen {
                self.apart.insert((before.min(after), before.max(after)));
            } else {
                self.share(event, before, after);
            }
        }
    }

    /// Two address spaces turn out to be one.
    fn share(&mut self, event: &Event, before: MmId, after: MmId) {
        let (kept, guessed) = if self.mms[after as usize].certain { (after, before) } else { (before, after) };
        let of = |mm| move |task: &&Traced| task.mm == Some(mm);
        let Some(other) = self.tasks.values().find(of(kept)).map(|task| task.slot) else { return };
        let same: Vec<Traced> = self.tasks.values().filter(of(guessed)).copied().collect();
        for task in same {
            let cpu = task.cpu.unwrap_or(event.cpu);
            self.act(event.time, cpu, Action::Share(task.slot, other, task.cpu.is_some()));
            self.mms[kept as usize].users += 1;
            self.put_mm(guessed);
        }
        for task in self.tasks.values_mut().filter(|task| task.mm == Some(guessed)) {
            task.mm = Some(kept);
        }
        for cpu in self.cpus.iter_mut().filter(|cpu| cpu.on == Some(guessed)) {
            cpu.on = Some(kept);
        }
    }

    /// A flush of another CPU should have come by now.
    fn overdue(&mut self, event: &Event) {
        let cpu = &mut self.cpus[event.cpu as usize];
        if let Some((sent, line)) = cpu.interrupted_at
            && event.time > sent + FLUSH_NS
        {
            cpu.interrupted_at = None;
            self.truth.compare(line, event.cpu, "flush", true, false);
        }
    }

    fn traced_switch(&mut self, event: &Event, prev: u32, prev_dead: bool, next: u32, next_comm: Comm) {
        if prev_dead {
            // In case its exit was lost.
            self.exit(event, prev);
            self.last_put(event, prev, Some(false));
        }
        let before = self.cpus[event.cpu as usize].on.filter(|_| self.cpus[event.cpu as usize].sure);
        let known = self.switch(event, prev, next, next_comm);
        let predicted = has_loaded(event.cpu);
        let guess = before.zip(self.cpus[event.cpu as usize].on).filter(|_| !known);
        self.cpus[event.cpu as usize].expected =
            Some(Expected { line: event.line, time: event.time, prev, predicted, known, seen: false, guess });
        if prev_dead {
            self.gone(event, prev);
        }
    }

    /// A switch, traced or made up. Says whether it is known what the MMU is on, before and after.
    fn switch(&mut self, event: &Event, prev: u32, next: u32, next_comm: Comm) -> bool {
        if prev == next {
            return true;
        }
        let index = event.cpu as usize;
        let next_task = self.task(event, next, next_comm);
        // A task that runs elsewhere has left there, and that was lost.
        if let Some(other) = next_task.cpu
            && next != 0
            && other != event.cpu
        {
            self.report.inferred_switches += 1;
            let idle = self.cpus[other as usize].idle;
            self.act(event.time, other, Action::Switch(next_task.slot, idle));
            self.cpus[other as usize].curr = 0;
            self.cpus[other as usize].expected = None;
        }
        let prev_slot = self.slot_of(event.cpu, prev);
        if let Some(task) = self.tasks.get_mut(&prev) {
            task.cpu = None;
        }
        if let Some(task) = self.tasks.get_mut(&next) {
            task.cpu = Some(event.cpu);
        }
        let next_slot = self.slot_of(event.cpu, next);
        forget_loads();
        self.act(event.time, event.cpu, Action::Switch(prev_slot, next_slot));
        self.cpus[index].curr = next;
        let Some(mm) = next_task.mm else { return true };
        let cpu = &mut self.cpus[index];
        let (was_sure, was_on) = (core::mem::replace(&mut cpu.sure, true), cpu.on.replace(mm));
        was_sure && was_on.is_none_or(|was_on| self.can_tell(was_on, mm))
    }

    fn slot_of(&self, cpu: u32, pid: u32) -> Slot {
        match self.tasks.get(&pid) {
            Some(task) if pid != 0 => task.slot,
            _ => self.cpus[cpu as usize].idle,
        }
    }

    // Loads that no switch explains.

    fn load(&mut self, event: &Event) {
        self.has_truth = true;
        let index = event.cpu as usize;
        if event.hardirq {
            match self.cpus[index].interrupted_at.take() {
                Some((_, line)) => self.truth.compare(line, event.cpu, "flush", true, true),
                None => {
                    self.truth.observed += 1;
                    self.act(event.time, event.cpu, Action::Flush);
                    self.cpus[index].sure = true;
                }
            }
            return;
        }
        let Some(task) = self.tasks.get(&event.pid).copied().filter(|_| event.pid != 0) else {
            // The idle task leaves what it held.
            self.truth.observed += 1;
            self.act(event.time, event.cpu, Action::Flush);
            return;
        };
        if task.dying.is_some() {
            self.last_put(event, event.pid, Some(true));
        } else if task.mm.is_some() || task.helper {
            let predicted = self.change_mm(event, event.pid);
            self.truth.compare(event.line, event.cpu, "exec", predicted, true);
            if let Some(task) = self.tasks.get_mut(&event.pid) {
                task.exec_at = Some(event.line);
                task.helper = false;
            }
        } else {
            // A kernel thread: it adopts an address space that the trace does not name, or execs, or leaves one.
            self.truth.observed += 1;
            self.act(event.time, event.cpu, Action::Flush);
        }
    }

    // Tasks and address spaces.

    fn new_slot(&mut self) -> Slot {
        self.free_slots.pop().unwrap_or_else(|| {
            self.next_slot += 1;
            self.next_slot - 1
        })
    }

    fn new_mm(&mut self, certain: bool, old: bool) -> MmId {
        let mm = TracedMm { users: 1, certain, old };
        match self.free_mms.pop() {
            Some(id) => {
                self.mms[id as usize] = mm;
                id
            }
            None => {
                self.mms.push(mm);
                (self.mms.len() - 1) as MmId
            }
        }
    }

    /// Whether two address spaces are known to be one or two. Those that the trace saw made are known; of those that were
    /// there before, a guess may be wrong.
    fn can_tell(&self, one: MmId, other: MmId) -> bool {
        let (first, second) = (self.mms[one as usize], self.mms[other as usize]);
        one == other
            || (first.certain && second.certain)
            || !first.old
            || !second.old
            || self.apart.contains(&(one.min(other), one.max(other)))
    }

    fn put_mm(&mut self, id: MmId) {
        let mm = &mut self.mms[id as usize];
        mm.users -= 1;
        if mm.users == 0 {
            self.free_mms.push(id);
            if mm.old {
                self.groups.retain(|_, group| *group != id);
                self.apart.retain(|&(one, other)| one != id && other != id);
            }
        }
    }

    /// A task that the trace names: known, or there from the start.
    fn task(&mut self, event: &Event, pid: u32, comm: Comm) -> Traced {
        let comm = if event.pid == pid { event.comm } else { comm };
        if pid == 0 {
            let slot = self.cpus[event.cpu as usize].idle;
            return Traced { slot, mm: None, cpu: None, dying: None, exec_at: None, helper: false };
        }
        if let Some(task) = self.tasks.get(&pid) {
            return *task;
        }
        let told = self.tasks_file.as_ref().and_then(|file| file.get(pid));
        let in_column = event.tgid.filter(|_| event.pid == pid);
        if told.is_none() && in_column.is_none() {
            self.report.inferred_tasks += 1;
        }
        let kthread = told.map_or_else(|| has_kthread_name(comm), |told| told.kthread);
        let group = told.map(|told| told.tgid).or(in_column);
        let mm = if kthread { None } else { group.and_then(|group| self.groups.get(&group).copied()) };
        match (kthread, mm) {
            (true, _) => self.add_task(event, pid, NewMm::None, None),
            (false, Some(mm)) => {
                let other = self.tasks.values().find(|task| task.mm == Some(mm)).map(|task| task.slot);
                self.mms[mm as usize].users += 1;
                self.add_task(event, pid, other.map_or(NewMm::Own, NewMm::Of), Some(mm))
            }
            (false, None) => {
                let mm = self.new_mm(group.is_some(), true);
                if let Some(group) = group {
                    self.groups.insert(group, mm);
                }
                self.add_task(event, pid, NewMm::Own, Some(mm))
            }
        }
    }

    fn add_task(&mut self, event: &Event, pid: u32, new: NewMm, mm: Option<MmId>) -> Traced {
        let helper = new == NewMm::None && pid != event.pid;
        let task = Traced { slot: self.new_slot(), mm, cpu: None, dying: None, exec_at: None, helper };
        self.act(event.time, event.cpu, Action::New(task.slot, new));
        self.tasks.insert(pid, task);
        task
    }

    fn new_task(&mut self, event: &Event, parent: u32, child: u32, shares_mm: Option<bool>) {
        if self.tasks.get(&child).is_some_and(|task| shares_mm.is_none() || task.cpu.is_some()) {
            return;
        }
        if self.tasks.contains_key(&child) {
            self.gone(event, child);
        }
        let parent = self.task(event, parent, Comm::default());
        match (parent.mm, shares_mm) {
            (None, _) => self.add_task(event, child, NewMm::None, None),
            (Some(mm), Some(true)) => {
                self.mms[mm as usize].users += 1;
                self.add_task(event, child, NewMm::Of(parent.slot), Some(mm))
            }
            (Some(_), certain) => {
                self.report.inferred_tasks += u64::from(certain.is_none());
                let mm = self.new_mm(certain.is_some(), false);
                self.add_task(event, child, NewMm::Own, Some(mm))
            }
        };
    }

    /// The running task has a new address space. Says whether that loads a root.
    fn change_mm(&mut self, event: &Event, pid: u32) -> bool {
        let task = self.task(event, pid, Comm::default());
        if let Some(old) = task.mm {
            self.put_mm(old);
        }
        let mm = self.new_mm(true, false);
        if let Some(task) = self.tasks.get_mut(&pid) {
            task.mm = Some(mm);
        }
        let cpu = &mut self.cpus[event.cpu as usize];
        (cpu.sure, cpu.on) = (true, Some(mm));
        self.act_and_see(event, Action::Exec(task.slot))
    }

    fn exec(&mut self, event: &Event, pid: u32, old_pid: u32) {
        // A thread that execs takes over the number of its group's leader, which has exited.
        if pid != old_pid {
            match self.tasks.get(&pid) {
                Some(leader) if leader.cpu.is_some() => return,
                Some(_) => self.gone(event, pid),
                None => {}
            }
            if let Some(task) = self.tasks.remove(&old_pid) {
                self.tasks.insert(pid, task);
            }
            self.cpus[event.cpu as usize].curr = pid;
        }
        match self.tasks.get_mut(&pid) {
            Some(task) if task.exec_at.is_some() => task.exec_at = None,
            _ => {
                let was_sure = self.cpus[event.cpu as usize].sure;
                let predicted = self.change_mm(event, pid);
                if was_sure {
                    self.truth.compare(event.line, event.cpu, "exec", predicted, false);
                } else {
                    self.truth.unknown += 1;
                }
            }
        }
    }

    fn exit(&mut self, event: &Event, pid: u32) {
        let task = self.task(event, pid, Comm::default());
        let Some(mm) = task.mm else { return };
        let last = self.mms[mm as usize].users == 1;
        // Without the kernel's word there is nothing to wait for.
        let holds = last && self.has_truth;
        self.act(event.time, event.cpu, Action::Exit(task.slot, holds));
        if let Some(task) = self.tasks.get_mut(&pid) {
            task.mm = None;
            task.dying = holds.then_some(mm);
        }
        if !holds {
            self.put_mm(mm);
        }
    }

    /// The exiting task puts the last user of its address space, and flushes. `real` says whether that loaded a root.
    fn last_put(&mut self, event: &Event, pid: u32, real: Option<bool>) {
        let Some(task) = self.tasks.get_mut(&pid) else { return };
        let slot = task.slot;
        let Some(mm) = task.dying.take() else { return };
        self.put_mm(mm);
        let predicted = self.act_and_see(event, Action::LastPut(slot));
        match real {
            Some(real) if self.cpus[event.cpu as usize].sure => {
                self.truth.compare(event.line, event.cpu, "exit", predicted, real);
            }
            Some(_) => self.truth.unknown += 1,
            None => {}
        }
    }

    /// A task is dead and has been switched away from.
    fn gone(&mut self, event: &Event, pid: u32) {
        let Some(task) = self.tasks.remove(&pid) else { return };
        if let Some(mm) = task.mm.or(task.dying) {
            self.put_mm(mm);
        }
        self.act(event.time, event.cpu, Action::Gone(task.slot));
        self.free_slots.push(task.slot);
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
