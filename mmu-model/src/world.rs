//! [`World`]: two tasks, one or two CPUs, a timer, and what is checked.

use core::any::Any;
use core::fmt;
use core::time::Duration;
use std::rc::Rc;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, LocalWord, Memory, Ordering::*};
use lazytlb_lazy_mmu::backends::s390::PteRange;
use lazytlb_lazy_mmu::backends::xen::{Form, SwitchState, X1, X2, X3, X4, X5};
use lazytlb_lazy_mmu::backends::{Arm64, PowerpcHash, PteAccess, S390, Sparc64, Xen};
use lazytlb_lazy_mmu::{Generation, LazyMmuArch, LazyMmuState};
use lazytlb_machine::{
    Config, Exploration, Kind, Limits, Machine, ObjectKind, Reduction, Search, Sim, SimLocal, SimWord,
};

use crate::kernel::{BATCH, Flaw, LabMmu, QUEUE, TABLE, Words, placed, with_words};
use crate::shadow::{Cure, Shadow, Walk};

/// What must hold, by the numbers that the rules of the mode have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// At the end of a task nothing is enabled, and nothing paused.
    R1,
    /// Behind a disable and a pause, all that the task has changed is in force.
    R5,
    /// When a CPU has gone from one task to another, nothing of the one is left on the CPU.
    R6,
    /// What an interrupt changes is in force at once.
    R7,
    /// When a lock is released, all that was changed with it held is to be seen by others.
    R10,
    /// A page is freed only when no entry maps it.
    R11,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::R1 => "R1: a task ends with a section or a pause open",
            Rule::R5 => "R5: behind a disable or a pause a change is not in force",
            Rule::R6 => "R6: something of a task is left on the CPU that it was taken from",
            Rule::R7 => "R7: what an interrupt changes is not in force",
            Rule::R10 => "R10: a lock is released before what was changed under it is in force",
            Rule::R11 => "R11: a page is freed that an entry maps",
        })
    }
}

/// A step of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A section begins; under s390 it names all entries.
    Enable,
    /// It ends.
    Disable,
    /// A pause begins.
    Pause,
    /// It ends.
    Resume,
    /// An entry, which no other task changes, is set.
    Set(usize, usize),
    /// From here on an interrupt may come, once, that sets the last entry in a section of its own.
    Interrupt,
    /// The shadow of an area is installed, if it is not there.
    Populate(Cure),
    /// It is removed, if it is there; it is at the start where a script has this.
    Depopulate(Cure),
    /// It is written into.
    TouchShadow,
}

/// What the architecture is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arch {
    /// [`Arm64`].
    Arm64,
    /// [`PowerpcHash`].
    PowerpcHash,
    /// [`Sparc64`].
    Sparc64,
    /// [`Xen`] as [`X1`].
    X1,
    /// [`Xen`] as [`X2`].
    X2,
    /// [`Xen`] as [`X3`].
    X3,
    /// [`Xen`] as [`X4`].
    X4,
    /// [`Xen`] as [`X5`].
    X5,
    /// [`S390`].
    S390,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 9] =
        [Arch::Arm64, Arch::PowerpcHash, Arch::Sparc64, Arch::X1, Arch::X2, Arch::X3, Arch::X4, Arch::X5, Arch::S390];
}

/// A back end, with what a switch does to it.
trait BackEnd<G: Generation + 'static>: PteAccess<Kernel = LabMmu<G>> + Copy + 'static {
    /// What a section names.
    fn named(self) -> Self::Ptes;

    /// The CPU is about to leave a task.
    fn switch_out(self, prev: usize) {
        let _ = prev;
    }

    /// The CPU has come to a task.
    fn switch_in(self, next: usize) {
        let _ = next;
    }

    /// A task has not run yet.
    fn new_task(self, state: &G) {
        let _ = state;
    }

    /// Whether nothing waits on a CPU.
    fn is_empty(self, cpu: usize) -> bool;
}

impl<G: Generation + 'static> BackEnd<G> for Arm64<LabMmu<G>> {
    fn named(self) {}
    fn is_empty(self, _cpu: usize) -> bool {
        true
    }
}

impl<G: Generation + 'static> BackEnd<G> for PowerpcHash<LabMmu<G>, BATCH> {
    fn named(self) {}
    fn is_empty(self, cpu: usize) -> bool {
        self.0.words().cpus[cpu].hash.is_empty()
    }
}

impl<G: Generation + 'static> BackEnd<G> for Sparc64<LabMmu<G>, BATCH> {
    fn named(self) {}
    fn is_empty(self, cpu: usize) -> bool {
        self.0.words().cpus[cpu].tlb.is_empty()
    }
}

impl<G: Generation + 'static> BackEnd<G> for S390<LabMmu<G>, TABLE> {
    fn named(self) -> PteRange<LabMmu<G>> {
        PteRange { mm: 1, addr: 0, end: TABLE, ptep: self.0.pte(0).ptep }
    }
    fn is_empty(self, cpu: usize) -> bool {
        self.0.words().cpus[cpu].cache.is_empty()
    }
}

impl<G: Generation + 'static, F: Form + 'static> BackEnd<G> for Xen<LabMmu<G>, F, QUEUE> {
    fn named(self) {}
    fn switch_out(self, prev: usize) {
        let task = &self.0.words().tasks[prev];
        self.start_context_switch(&Switched(&task.state), &task.xen);
    }
    fn switch_in(self, next: usize) {
        let task = &self.0.words().tasks[next];
        self.end_context_switch(&Switched(&task.state), &task.xen);
    }
    fn new_task(self, state: &G) {
        if !F::CPU_KNOWS {
            Switched(state).pause(&self);
        }
    }
    fn is_empty(self, cpu: usize) -> bool {
        self.0.words().cpus[cpu].xen.is_empty()
    }
}

/// A task's state at a switch. Only the merged generation's can be paused there.
struct Switched<'a, G>(&'a G);

impl<G: Generation + 'static> Switched<'_, G> {
    fn merged(&self) -> Option<&LazyMmuState<SimLocal<u8>>> {
        (self.0 as &dyn Any).downcast_ref()
    }
}

impl<G: Generation + 'static> SwitchState for Switched<'_, G> {
    fn is_on(&self) -> bool {
        self.0.is_on()
    }
    fn pause<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.merged() {
            state.task_lazy_mmu_mode_pause(arch);
        }
    }
    fn resume<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.merged() {
            state.task_lazy_mmu_mode_resume(arch);
        }
    }
}

/// Where the tasks run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Both on one CPU.
    OneCpu,
    /// On one CPU; when the first one is preempted, a second CPU takes it over.
    FirstMoves,
    /// Each on a CPU of its own.
    SideBySide,
}

/// Two tasks, and what may happen to them.
#[derive(Clone, Debug)]
pub struct World {
    /// The scripts.
    pub scripts: [Vec<Step>; 2],
    /// Where the tasks run.
    pub placement: Placement,
    /// How often the timer may take a CPU away.
    pub preemptions: usize,
    /// What is wrong with the kernel.
    pub flaw: Option<Flaw>,
}

/// The second CPU's idle task.
const IDLE: usize = 2;
/// The vector of [`Step::Interrupt`].
const VECTOR: u8 = 1;
/// What the interrupt sets, and to what.
const IN_INTERRUPT: (usize, usize) = (TABLE - 1, 9);

impl World {
    /// Two scripts on one CPU, which the timer may take away twice.
    pub fn new(scripts: [&[Step]; 2]) -> World {
        World { scripts: scripts.map(<[Step]>::to_vec), placement: Placement::OneCpu, preemptions: 2, flaw: None }
    }

    /// Runs all interleavings under a generation of the API, on an architecture.
    ///
    /// # Panics
    /// If [`Arch::X5`] is asked for with another generation than the merged one, which alone it can pause.
    pub fn explore<G: Generation + 'static>(&self, arch: Arch) -> Exploration {
        let kernel = LabMmu::<G>::NEW;
        match arch {
            Arch::Arm64 => self.explore_on(Arm64(kernel)),
            Arch::PowerpcHash => self.explore_on(PowerpcHash::<_, BATCH>(kernel)),
            Arch::Sparc64 => self.explore_on(Sparc64::<_, BATCH>(kernel)),
            Arch::X1 => self.explore_on(Xen::<_, X1, QUEUE>::new(kernel)),
            Arch::X2 => self.explore_on(Xen::<_, X2, QUEUE>::new(kernel)),
            Arch::X3 => self.explore_on(Xen::<_, X3, QUEUE>::new(kernel)),
            Arch::X4 => self.explore_on(Xen::<_, X4, QUEUE>::new(kernel)),
            Arch::X5 => {
                assert!(
                    Switched(&G::default()).merged().is_some(),
                    "X5 pauses tasks as only the merged generation can"
                );
                self.explore_on(Xen::<_, X5, QUEUE>::new(kernel))
            }
            Arch::S390 => self.explore_on(S390::<_, TABLE>(kernel)),
        }
    }

    fn cpus(&self) -> usize {
        if self.placement == Placement::OneCpu { 1 } else { 2 }
    }

    fn explore_on<G: Generation + 'static, B: BackEnd<G>>(&self, arch: B) -> Exploration {
        let cpus = self.cpus();
        let machine = Machine::new(Config { cpus, bytes: 16 << 10, ticks: true, ..Config::default() });
        let running = Rc::new(Running::place(&machine, self, arch));
        for task in 0..2 {
            let running = Rc::clone(&running);
            let id = machine.add_task(["first", "second"][task], move || running.run(task));
            if task == 0 || self.placement == Placement::SideBySide {
                machine.boot(id, true);
            }
        }
        if self.placement == Placement::FirstMoves {
            let running = Rc::clone(&running);
            machine.boot(machine.add_task("swapper/1", move || running.idle()), true);
        }
        let interrupted = Rc::clone(&running);
        machine.on_interrupt(move |vector| interrupted.interrupt(vector));
        let exits = Rc::clone(&running);
        machine.on_irq_exit(move |vector| exits.irq_exit(vector));
        let ends = Rc::clone(&running);
        machine.at_end(move |machine| ends.end(machine));
        let limits = Limits { executions: 10_000_000, time: Duration::from_secs(120), stop_at_first: false };
        with_words(&running.words, || machine.explore(Search::Exhaustive(Reduction::Full), limits))
    }
}

/// A world on its machine.
struct Running<G: Generation + 'static, B> {
    words: Words<G>,
    arch: B,
    scripts: [Vec<Step>; 2],
    /// The tasks that wait for a CPU, a bit each.
    waiting: &'static SimWord<usize>,
    /// How often the timer may take a CPU away still.
    preemptions: &'static SimLocal<usize>,
    /// The task that each CPU has just left; one more than its number.
    left: &'static [SimLocal<usize>],
    /// The tasks whose scripts are over, a bit each.
    over: &'static SimWord<usize>,
    /// What each task has set each entry to; one more than the value.
    set: &'static [SimLocal<usize>],
    /// How many tasks run at the start.
    booted: usize,
    shadow: Option<Shadow>,
}

impl<G: Generation + 'static, B: BackEnd<G>> Running<G, B> {
    fn place(machine: &Machine, world: &World, arch: B) -> Self {
        let locals = |name, count, value| -> &'static [SimLocal<usize>] {
            placed(machine.place_slice(name, ObjectKind::Other, count, |_| LocalWord::new(value)))
        };
        let words = Words::place(machine, 3, world.cpus(), world.flaw);
        let side_by_side = world.placement == Placement::SideBySide;
        let booted = if side_by_side { 2 } else { 1 };
        if world.flaw != Some(Flaw::NewTasksNotPaused) {
            for new in &words.tasks[booted..] {
                arch.new_task(&new.state);
            }
        }
        let populates = |script: &Vec<Step>| script.iter().any(|step| matches!(step, Step::Populate(_)));
        let depopulates = |script: &Vec<Step>| script.iter().any(|step| matches!(step, Step::Depopulate(_)));
        let in_hand = [populates(&world.scripts[0]), populates(&world.scripts[1])];
        let mapped = world.scripts.iter().any(depopulates);
        let has_shadow = mapped || in_hand.contains(&true);
        let shadow = has_shadow.then(|| Shadow::place(machine, words.entries, in_hand, mapped));
        let shared = |name, value| -> &'static SimWord<usize> {
            &placed(machine.place_slice(name, ObjectKind::Other, 1, |_| AtomicWord::new(value)))[0]
        };
        Running {
            words,
            arch,
            scripts: world.scripts.clone(),
            waiting: shared("waiting", if side_by_side { 0 } else { 1 << 1 }),
            preemptions: &locals("preemptions", 1, if side_by_side { 0 } else { world.preemptions })[0],
            left: locals("left", 2, 0),
            over: shared("over", 0),
            set: locals("set", 3 * TABLE, 0),
            booted,
            shadow,
        }
    }
}

/// The most sections or pauses that a script may have open.
const DEEPEST: usize = 4;

/// What open sections or pauses have to give back.
struct Open<T> {
    open: [T; DEEPEST],
    depth: usize,
}

impl<T: Default> Default for Open<T> {
    fn default() -> Self {
        Open { open: core::array::from_fn(|_| T::default()), depth: 0 }
    }
}

impl<T: Default> Open<T> {
    fn push(&mut self, value: T) {
        self.open[self.depth] = value;
        self.depth += 1;
    }

    fn pop(&mut self) -> T {
        self.depth = self.depth.saturating_sub(1);
        core::mem::take(&mut self.open[self.depth])
    }
}

fn this_cpu() -> usize {
    Machine::with(Machine::this_cpu)
}

fn irqs_off() {
    Machine::with(|machine| machine.irq_save(Label::NONE));
}

fn irqs_on() {
    Machine::with(|machine| machine.irq_restore(true));
}

/// A finding, not an error: what comes of it is to be seen.
pub(crate) fn broken(rule: Rule) {
    Machine::with(|machine| machine.fail(Kind::Invariant, rule.to_string()));
}

impl<G: Generation + 'static, B: BackEnd<G>> Running<G, B> {
    /// A task's life.
    fn run(&self, task: usize) {
        if task < self.booted {
            // Its first step comes with its start, before any timer.
            self.waiting.load(Relaxed);
            self.let_timer_in();
        } else {
            self.finish_switch(task);
        }
        // Nothing on a stack may own memory: a search goes back to copies of it.
        let mut sections = Open::default();
        let mut pauses = Open::default();
        let state = &self.words.tasks[task].state;
        for &step in &self.scripts[task] {
            match step {
                Step::Enable => sections.push(state.enable_with_ptes(&self.arch, self.arch.named())),
                Step::Disable => state.disable(&self.arch, sections.pop()),
                Step::Pause => pauses.push(state.pause(&self.arch)),
                Step::Resume => state.resume(&self.arch, pauses.pop()),
                Step::Set(entry, value) => self.set(task, entry, value),
                Step::Populate(cure) => self.walk(task, cure).populate(self.arch.named()),
                Step::Depopulate(cure) => self.walk(task, cure).depopulate(self.arch.named()),
                Step::TouchShadow => self.walk(task, Cure::None).touch(),
                Step::Interrupt => Machine::with(|machine| machine.raise(machine.this_cpu(), VECTOR, false)),
            }
            if matches!(step, Step::Disable | Step::Pause) {
                self.check_in_force(task);
            }
        }
        if Machine::with(|machine| machine.inspect(|| state.counts())) != (0, 0) {
            broken(Rule::R1);
        }
        self.over.fetch_or(1 << task, Release);
        irqs_off();
        Machine::with(|machine| machine.tick(false));
        if let Some(next) = self.take_waiting() {
            self.switch(task, next);
        }
        irqs_on();
    }

    /// The second CPU: takes over the first task when it waits.
    fn idle(&self) {
        Sim.spin_until(|| ((self.waiting.load(Acquire) | self.over.load(Acquire)) & 1 != 0).then_some(()));
        irqs_off();
        if self.take(0) {
            self.switch(IDLE, 0);
        }
        irqs_on();
    }

    fn walk(&self, task: usize, cure: Cure) -> Walk<'_, G, B> {
        let shadow = self.shadow.as_ref().expect("placed where a script is about it");
        Walk { shadow, arch: self.arch, state: &self.words.tasks[task].state, task, cure }
    }

    fn set(&self, task: usize, entry: usize, value: usize) {
        self.set[task * TABLE + entry].poke(value + 1);
        // SAFETY: the entries stay.
        unsafe { self.arch.set_pte(LabMmu::<G>::NEW.pte(entry), value) };
    }

    /// All that a task has set is what memory has.
    fn check_in_force(&self, task: usize) {
        let set = &self.set[task * TABLE..(task + 1) * TABLE];
        let is_in_force = set.iter().enumerate().all(|(entry, set)| match set.peek() {
            0 => true,
            value => LabMmu::<G>::NEW.look_at(entry) == value - 1,
        });
        if !is_in_force || !self.nothing_waits() {
            broken(Rule::R5);
        }
    }

    /// Whether nothing waits on this CPU. Not a step.
    fn nothing_waits(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.arch.is_empty(machine.this_cpu())))
    }

    /// The timer may come, as long as it may take the CPU away.
    fn let_timer_in(&self) {
        Machine::with(|machine| machine.tick(self.preemptions.peek() > 0));
    }

    fn interrupt(&self, vector: u8) {
        if vector != VECTOR {
            return;
        }
        let state = &self.words.tasks[Machine::with(Machine::current_task).index()].state;
        let section = state.enable_with_ptes(&self.arch, self.arch.named());
        let (entry, value) = IN_INTERRUPT;
        // SAFETY: the entries stay.
        unsafe { self.arch.set_pte(LabMmu::<G>::NEW.pte(entry), value) };
        if LabMmu::<G>::NEW.look_at(entry) != value {
            broken(Rule::R7);
        }
        state.disable(&self.arch, section);
    }

    /// The timer takes the CPU away, if somebody waits for it. Context: interrupts off.
    fn irq_exit(&self, vector: u8) {
        if vector != Machine::TICK || self.preemptions.peek() == 0 {
            return;
        }
        let Some(next) = self.take_waiting() else { return };
        self.preemptions.poke(self.preemptions.peek() - 1);
        let current = Machine::with(Machine::current_task).index();
        Machine::with(|machine| machine.preempted(|| self.switch(current, next)));
    }

    /// Takes a task that waits.
    fn take_waiting(&self) -> Option<usize> {
        (0..2).find(|&task| self.take(task))
    }

    fn take(&self, task: usize) -> bool {
        self.waiting.load(Relaxed) & 1 << task != 0 && self.waiting.fetch_and(!(1 << task), AcqRel) & 1 << task != 0
    }

    /// From one task to another, and the way back. Context: interrupts off.
    fn switch(&self, task: usize, next: usize) {
        self.arch.switch_out(task);
        self.left[this_cpu()].set(task + 1);
        Machine::with(|machine| machine.switch_to(machine.task(next)));
        self.finish_switch(task);
        irqs_off();
    }

    /// The first thing on a stack that a CPU has come to. Interrupts are on when it returns.
    fn finish_switch(&self, task: usize) {
        self.arch.switch_in(task);
        let cpu = this_cpu();
        if !self.nothing_waits() {
            broken(Rule::R6);
        }
        let left = self.left[cpu].get() - 1;
        if left != IDLE && self.over.peek() & 1 << left == 0 {
            self.waiting.fetch_or(1 << left, Release);
        }
        self.let_timer_in();
        irqs_on();
    }

    /// What must be so when all scripts are over.
    fn end(&self, machine: &Machine) {
        let cpus = 0..self.words.cpus.len();
        if !cpus.into_iter().all(|cpu| self.arch.is_empty(cpu)) {
            machine.fail(Kind::Invariant, Rule::R6.to_string());
        }
        if self.over.peek() != 0b11 {
            machine.fail(Kind::Deadlock, "a task has not come to its end");
        }
        if let Some(shadow) = &self.shadow {
            shadow.end(machine, self.words.entries);
        }
    }
}
