//! [`Machine`]: what is simulated, and how an execution is run.
//!
//! One machine runs on one thread. While it runs, [`Sim`](crate::Sim) finds it through a thread local; set-up and
//! inspection happen outside a run and act on memory directly.

use core::cell::{Cell, OnceCell, Ref, RefCell};
use core::fmt;
use core::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::sync::Once;

use lazytlb_core::memory::Label;
use lazytlb_kasan::{Addr, Geometry, Kasan};

use crate::arena::{Arena, WORD};
use crate::policy::{Dfs, Policy};
use crate::record::LogLine;
use crate::reduce::Summary;
use crate::schedule::Schedule;
use crate::snapshot::Snapshots;
use crate::stacks::Stacks;
use crate::state::{Action, End, Place, State, Task};
use crate::symmetry::Symmetry;
use crate::verdict::{Kind, Verdict};
use crate::watchpoint::Watchpoints;
use crate::weak::Weak;

/// How stores reach memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum MemoryModel {
    /// At once: sequential consistency.
    #[default]
    Sc,
    /// Through a store buffer for each CPU: x86-TSO.
    Tso,
    /// To the end of a history for each word, of which a load may read what its CPU's view permits: RC11 without load
    /// buffering, nearly. `machine/src/weak.rs` says what exactly.
    Weak,
}

impl MemoryModel {
    /// All models, the weakest last.
    pub const ALL: [MemoryModel; 3] = [MemoryModel::Sc, MemoryModel::Tso, MemoryModel::Weak];

    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryModel::Sc => "sc",
            MemoryModel::Tso => "tso",
            MemoryModel::Weak => "weak",
        }
    }
}

impl fmt::Display for MemoryModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the machine is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many CPUs there are; at most 16, agents included.
    pub cpus: usize,
    /// How stores reach memory.
    pub memory: MemoryModel,
    /// How much memory there is, in bytes.
    pub bytes: usize,
    /// How many freed objects are held back before their memory is reused.
    pub quarantine: usize,
    /// Labels of fences, stores and RMWs that have no effect: planted bugs.
    pub dropped: Vec<String>,
    /// Labels of fences and accesses that order nothing: planted bugs. A load, store or read-modify-write is relaxed, a
    /// fence is none. Only a fence makes a difference under [`MemoryModel::Sc`] and [`MemoryModel::Tso`].
    pub relaxed: Vec<String>,
    /// How many steps an execution may have.
    pub max_steps: u64,
    /// How many stores a CPU's buffer holds under [`MemoryModel::Tso`]; one more waits. Without a bound a loop that
    /// stores and never fences would have no end of states.
    pub store_buffer: usize,
    /// Tasks share CPUs as they like: timers may interrupt them, where [`Machine::tick`] says so, and the reduction tells
    /// apart what they touch.
    pub ticks: bool,
    /// The program is to come to an end. A complete search reports an execution that comes to where none ends any more, and
    /// goes on for ever.
    pub ends: bool,
    /// How many stores of a word can still be read under [`MemoryModel::Weak`], the newest included; at most 255. Bounded
    /// for the same reason.
    pub history: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cpus: 2,
            memory: MemoryModel::Sc,
            bytes: 64 << 10,
            quarantine: 0,
            dropped: Vec::new(),
            relaxed: Vec::new(),
            max_steps: 20_000,
            store_buffer: 8,
            ticks: false,
            ends: true,
            history: 8,
        }
    }
}

/// A task of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TaskId(pub(crate) usize);

impl TaskId {
    /// Its number, from 0 in the order in which tasks were added.
    pub fn index(self) -> usize {
        self.0
    }
}

type Body = Rc<dyn Fn()>;
/// Something that the program sets, once. It is called by reference: a count on a stack would be given back as often as
/// the stack is gone back to.
pub(crate) type Hook<F> = OnceCell<Box<F>>;

/// Sets it.
///
/// # Panics
/// If it was set before.
pub(crate) fn set_once<F: ?Sized>(hook: &Hook<F>, f: Box<F>) {
    assert!(hook.set(f).is_ok(), "a machine's hook is set once");
}

/// What the outcome of an execution is.
pub(crate) type Reader = dyn Fn(&Machine, &mut Vec<u64>);

/// A machine with its memory, its CPUs, its tasks.
pub struct Machine {
    pub(crate) config: Config,
    pub(crate) arena: Arena,
    pub(crate) kasan: RefCell<Kasan>,
    pub(crate) state: RefCell<State>,
    pub(crate) policy: RefCell<Policy>,
    pub(crate) handler: Hook<dyn Fn(u8)>,
    pub(crate) nmi_handler: Hook<dyn Fn(u8)>,
    pub(crate) irq_exit: Hook<dyn Fn(u8)>,
    /// Tasks are preempted.
    pub(crate) preemption: Hook<dyn Fn()>,
    /// What happened in this execution.
    pub(crate) record: RefCell<Schedule>,
    pub(crate) actions: Cell<Vec<Action>>,
    /// The task that runs has just been started, which is one with its first step.
    pub(crate) granted: Cell<bool>,
    /// The task that was running gave its place to another.
    pub(crate) switching: Cell<bool>,
    pub(crate) stale: Cell<Option<&'static str>>,
    /// Call traces, tracks and the log are kept.
    pub(crate) recording: Cell<bool>,
    /// Accesses are no steps now.
    pub(crate) quiet: Cell<Quiet>,
    pub(crate) tracing: Cell<u64>,
    pub(crate) log: RefCell<Vec<LogLine>>,
    pub(crate) report: RefCell<Option<String>>,
    /// It is a finding's, and yields to an error's.
    pub(crate) report_yields: Cell<bool>,
    /// Histories and views, under [`MemoryModel::Weak`].
    pub(crate) weak: RefCell<Weak>,
    pub(crate) symmetry: Symmetry,
    /// The words whose accesses are told.
    pub(crate) watchpoints: Watchpoints,
    /// The words of each slot of each cache.
    pub(crate) slots: RefCell<Vec<Range<usize>>>,
    /// Accesses take the slow path: memory is weak, or something is planted.
    pub(crate) unusual: bool,
    /// The dropped labels that were met, and the relaxed ones.
    pub(crate) met: RefCell<Vec<bool>>,
    bodies: RefCell<Vec<Body>>,
    pub(crate) stacks: Stacks,
    pub(crate) snapshots: Snapshots,
    sealed: Cell<bool>,
    running: Cell<bool>,
    at_end: Hook<dyn Fn(&Machine)>,
    outcome: Hook<Reader>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Whether accesses are steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Quiet {
    /// They are.
    No,
    /// They are not, and nobody else's steps matter to them.
    Unnoticed,
    /// They are not, and what is read matters.
    Inspecting,
    /// They are not, and the running CPU's own stores are seen before they are in memory.
    Own,
}

thread_local! {
    static CURRENT: Cell<*const Machine> = const { Cell::new(core::ptr::null()) };
    /// What the explored code that panics now says, and where.
    static PANICKED: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on a panic of explored code is a verdict and nothing else: it is not printed, in each of a million
/// executions. All other panics go to the hook that was there.
fn catch_panics_of_tasks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let otherwise = take_hook();
        set_hook(Box::new(move |panic| {
            if with_running(|machine| machine.stacks.running().is_some()) != Some(true) {
                return otherwise(panic);
            }
            let text = panic.payload().downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("a panic");
            PANICKED.set(Some(match panic.location() {
                Some(at) => format!("{text}, at {}:{}", at.file(), at.line()),
                None => text.to_owned(),
            }));
        }));
    });
}

/// Runs `f` with the machine that runs an execution on this thread, if one does.
#[inline]
pub(crate) fn with_running<R>(f: impl FnOnce(&Machine) -> R) -> Option<R> {
    let machine = CURRENT.get();
    // SAFETY: it is null, or set by `run` for as long as that borrows the machine.
    unsafe { machine.as_ref() }.map(f)
}

/// The address that the first byte of the arena is printed as.
pub(crate) const BASE: Addr = Addr(0xffff_8881_0400_0000);

impl Machine {
    /// The most CPUs and agents that a machine can have: a context is a bit in a word.
    pub const MAX_PLACES: usize = 16;

    /// The vector of the timer's interrupt.
    pub const TICK: u8 = 31;

    /// A machine without tasks; its CPUs are online and have nothing to run yet.
    ///
    /// # Panics
    /// If there are no CPUs, or too many.
    pub fn new(config: Config) -> Machine {
        catch_panics_of_tasks();
        assert!((1..=Self::MAX_PLACES).contains(&config.cpus), "a machine has 1 to {} CPUs", Self::MAX_PLACES);
        let arena = Arena::new(config.bytes);
        let kasan = Kasan::new(Geometry { base: BASE, len: arena.len(), quarantine: config.quarantine });
        let words = arena.len() / WORD;
        let planted = config.dropped.len() + config.relaxed.len();
        Machine {
            arena,
            kasan: RefCell::new(kasan),
            state: RefCell::new(State::new()),
            policy: RefCell::new(Policy::Dfs(Dfs::new(None, true))),
            handler: Hook::new(),
            nmi_handler: Hook::new(),
            irq_exit: Hook::new(),
            preemption: Hook::new(),
            record: RefCell::default(),
            actions: Cell::default(),
            granted: Cell::new(false),
            switching: Cell::new(false),
            stale: Cell::new(None),
            recording: Cell::new(false),
            quiet: Cell::new(Quiet::No),
            tracing: Cell::new(0),
            log: RefCell::default(),
            report: RefCell::default(),
            report_yields: Cell::default(),
            weak: RefCell::default(),
            symmetry: Symmetry::default(),
            watchpoints: Watchpoints::new(words),
            slots: RefCell::default(),
            unusual: config.memory == MemoryModel::Weak || planted > 0,
            met: RefCell::new(vec![false; planted]),
            bodies: RefCell::default(),
            stacks: Stacks::default(),
            snapshots: Snapshots::default(),
            sealed: Cell::new(false),
            running: Cell::new(false),
            at_end: Hook::new(),
            outcome: Hook::new(),
            config,
        }
    }

    /// The machine that runs on this thread now.
    ///
    /// # Panics
    /// If none does.
    pub fn with<R>(f: impl FnOnce(&Machine) -> R) -> R {
        with_running(f).expect("this can only be asked inside a running machine")
    }

    /// The machine that runs on this thread now, if one does.
    pub fn try_with<R>(f: impl FnOnce(&Machine) -> R) -> Option<R> {
        with_running(f)
    }

    /// Runs `f` without steps: its accesses go straight to memory, past the store buffers, and nobody can come in
    /// between. For the model's own books and for objects that nobody else can see yet.
    pub fn quietly<R>(&self, f: impl FnOnce() -> R) -> R {
        self.with_quiet(Quiet::Unnoticed, f)
    }

    /// As [`quietly`](Self::quietly), for a check that is part of the step under way and looks at what others write: what
    /// it reads is known to matter, so that those writes are choice points.
    ///
    /// What comes of it is a verdict or nothing; the program must not act on it.
    pub fn inspect<R>(&self, f: impl FnOnce() -> R) -> R {
        self.with_quiet(Quiet::Inspecting, f)
    }

    /// As [`quietly`](Self::quietly), for a look at what the running CPU alone writes: it sees its own stores, whether they
    /// are in memory or not.
    pub fn as_this_cpu_sees<R>(&self, f: impl FnOnce() -> R) -> R {
        self.with_quiet(Quiet::Own, f)
    }

    fn with_quiet<R>(&self, quiet: Quiet, f: impl FnOnce() -> R) -> R {
        let before = self.quiet.replace(quiet);
        let result = f();
        self.quiet.set(before);
        result
    }

    /// What it is like.
    pub fn config(&self) -> &Config {
        &self.config
    }

    // Set-up.

    /// A new task, which runs `body` when a CPU is switched to it.
    ///
    /// `body` is started afresh in each execution. What it keeps on its stack from one step to the next must own nothing (no
    /// memory, no count, no borrow of a `RefCell`): an execution that ends early forgets stacks without unwinding them, and a
    /// search goes on from the same stack more than once.
    pub fn add_task(&self, name: &str, body: impl Fn() + 'static) -> TaskId {
        let mut state = self.state.borrow_mut();
        let id = state.tasks.len();
        state.tasks.push(Task::new(name, id as u32));
        self.bodies.borrow_mut().push(Rc::new(body));
        self.stacks.add();
        TaskId(id)
    }

    /// Gives the next CPU the task it starts with, and says whether it starts online. CPUs come in order, then agents.
    ///
    /// # Panics
    /// If all CPUs have one.
    pub fn boot(&self, task: TaskId, online: bool) {
        let mut state = self.state.borrow_mut();
        assert!(state.places.len() < self.config.cpus, "there are {} CPUs", self.config.cpus);
        state.places.push(Place::new(false, task.0));
        state.boot.push((task.0, online));
    }

    /// Adds an agent, which takes steps beside the CPUs: it has no interrupts and no store buffer.
    ///
    /// # Panics
    /// If not all CPUs were booted, or there are too many places.
    pub fn add_agent(&self, task: TaskId) {
        let mut state = self.state.borrow_mut();
        assert!(state.places.len() >= self.config.cpus, "agents come after the CPUs");
        assert!(state.places.len() < Self::MAX_PLACES, "a machine has at most {} CPUs and agents", Self::MAX_PLACES);
        state.places.push(Place::new(true, task.0));
        state.boot.push((task.0, true));
    }

    /// Sets what an interrupt runs: it gets the vector.
    pub fn on_interrupt(&self, handler: impl Fn(u8) + 'static) {
        set_once(&self.handler, Box::new(handler));
    }

    /// Sets what a non-maskable interrupt runs: it gets the vector.
    pub fn on_nmi(&self, handler: impl Fn(u8) + 'static) {
        set_once(&self.nmi_handler, Box::new(handler));
    }

    /// Sets what runs at the end of each interrupt, with its vector, interrupts off and no longer in the interrupt:
    /// [`softirq`](Self::softirq)s, and preemption by [`preempted`](Self::preempted). They may be on when it returns.
    pub fn on_irq_exit(&self, exit: impl Fn(u8) + 'static) {
        set_once(&self.irq_exit, Box::new(exit));
    }

    /// Sets what runs when preemption is enabled again, outside interrupts and with interrupts on: a preemption that had
    /// to wait. Disabling preemption is a step from then on.
    pub fn on_preempt_enable(&self, resched: impl Fn() + 'static) {
        set_once(&self.preemption, Box::new(resched));
    }

    /// Sets what is checked when an execution is over: it may look, and [`fail`](Self::fail), but not write.
    pub fn at_end(&self, check: impl Fn(&Machine) + 'static) {
        set_once(&self.at_end, Box::new(check));
    }

    /// Sets what an execution's outcome is, besides its verdicts: numbers that it adds to the list.
    pub fn outcome(&self, outcome: impl Fn(&Machine, &mut Vec<u64>) + 'static) {
        set_once(&self.outcome, Box::new(outcome));
    }

    // Inside an execution.

    /// The CPU (or agent) that runs.
    pub fn this_cpu(&self) -> usize {
        self.state.borrow().running
    }

    /// The task that runs.
    pub fn current_task(&self) -> TaskId {
        let state = self.state.borrow();
        TaskId(state.places[state.running].task)
    }

    /// The task that was added as number `index`, from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn task(&self, index: usize) -> TaskId {
        assert!(index < self.state.borrow().tasks.len(), "there is no task {index}");
        TaskId(index)
    }

    /// What a task is called.
    pub fn task_name(&self, task: TaskId) -> String {
        self.state.borrow().tasks[task.0].name.to_string()
    }

    /// Whether a CPU takes interrupts. Not a step.
    pub fn is_online(&self, cpu: usize) -> bool {
        self.state.borrow().places[cpu].online
    }

    /// Takes a CPU off or on. Not a step; an offline CPU loses interrupts.
    pub fn set_online(&self, cpu: usize, online: bool) {
        self.state.borrow_mut().places[cpu].online = online;
    }

    #[inline]
    pub(crate) fn is_weak(&self) -> bool {
        self.config.memory == MemoryModel::Weak
    }

    #[inline]
    pub(crate) fn is_dropped(&self, label: Label) -> bool {
        self.unusual && self.meets(&self.config.dropped, 0, label)
    }

    /// Whether what happens under this label orders nothing.
    #[inline]
    pub(crate) fn is_relaxed(&self, label: Label) -> bool {
        self.unusual && self.meets(&self.config.relaxed, self.config.dropped.len(), label)
    }

    /// Whether a label is one of those planted, which are noted from `first` on.
    #[cold]
    fn meets(&self, planted: &[String], first: usize, label: Label) -> bool {
        if planted.is_empty() || label.is_none() {
            return false;
        }
        let Some(index) = planted.iter().position(|planted| planted == label.name()) else { return false };
        self.met.borrow_mut()[first + index] = true;
        true
    }

    /// Whether what happens under this label is to have no effect.
    pub fn drops(&self, label: Label) -> bool {
        self.is_dropped(label)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.get()
    }

    // Running.

    /// Suspends the running task.
    #[inline(always)]
    pub(crate) fn suspend(&self) {
        self.stacks.suspend();
    }

    #[cold]
    pub(crate) fn suspend_for_ever(&self) -> ! {
        loop {
            self.suspend();
        }
    }

    /// Starts or continues a task until it suspends.
    #[inline(always)]
    fn resume(&self, task: usize) {
        let machine: *const Machine = self;
        self.stacks.resume(task, move || {
            // SAFETY: stacks are taken back before a search returns, which borrows the machine.
            let machine = unsafe { &*machine };
            machine.run_body(task);
        });
    }

    fn run_body(&self, task: usize) {
        self.start();
        let body: *const dyn Fn() = Rc::as_ptr(&self.bodies.borrow()[task]);
        // SAFETY: bodies are never removed. A counted pointer would be lost with the stack.
        let body = unsafe { &*body };
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            let message = PANICKED.take().unwrap_or_else(|| "a panic without a message".into());
            self.fail(Kind::Panic, message);
        }
        self.body_is_over()
    }

    /// Makes the state now the one that every execution starts from.
    pub(crate) fn seal(&self) {
        assert!(self.state.borrow().places.len() >= self.config.cpus, "every CPU needs a task to boot with");
        self.arena.seal();
        self.kasan.borrow_mut().seal();
    }

    pub(crate) fn set_summary(&self, active: bool, restarts: bool) {
        let words = self.arena.len() / WORD;
        self.state.borrow_mut().summary =
            Summary::new(words, active, restarts, self.config.ticks, self.arena.names().clone());
        if self.is_weak() {
            *self.weak.borrow_mut() = Weak::new(words, self.config.history, &self.slots.borrow(), restarts);
        }
    }

    /// Runs one execution by the policy. Afterwards the state is that of its end.
    pub(crate) fn execute(&self) -> End {
        // An execution may have ended in the middle of what is quiet.
        self.quiet.set(Quiet::No);
        if !self.go_back() {
            self.begin();
        }
        let before = CURRENT.replace(self);
        assert!(before.is_null(), "one machine runs on a thread at a time");
        self.running.set(true);
        self.run_to_end();
        self.running.set(false);
        CURRENT.set(before);
        if !self.takes_snapshots() {
            self.stacks.abandon();
        }
        let end = self.state.borrow().end.expect("it has ended");
        if end == End::Complete
            && let Some(check) = self.at_end.get()
        {
            check(self);
        }
        self.state.borrow().end.unwrap_or(end)
    }

    fn begin(&self) {
        self.stacks.abandon();
        self.switching.set(false);
        self.arena.reset();
        self.kasan.borrow_mut().reset();
        self.state.borrow_mut().reset();
        if self.is_weak() {
            let state = self.state.borrow();
            self.weak.borrow_mut().reset(state.places.len(), state.tasks.len());
        }
        self.record.borrow_mut().clear();
        self.log.borrow_mut().clear();
        self.report.borrow_mut().take();
        self.report_yields.set(false);
        self.tracing.set(0);
        self.stale.set(None);
        self.granted.set(false);
    }

    fn run_to_end(&self) {
        {
            let mut state = self.state.borrow_mut();
            match self.pick(&mut state) {
                Some(action) => state.action = action,
                None => return,
            }
        }
        loop {
            let task = {
                let mut state = self.state.borrow_mut();
                if state.end.is_some() {
                    return;
                }
                // A task that gave its CPU away leaves `running` as it is; else the action says who is next.
                if !self.switching.replace(false) {
                    state.running = state.action.place();
                }
                state.places[state.running].task
            };
            self.resume(task);
            self.take_snapshot_if_asked();
        }
    }

    /// The outcome of the execution that has ended.
    pub(crate) fn read_outcome(&self, values: &mut Vec<u64>) {
        if let Some(outcome) = self.outcome.get() {
            outcome(self, values);
        }
    }

    pub(crate) fn verdicts(&self) -> Ref<'_, [Verdict]> {
        Ref::map(self.state.borrow(), |state| &state.verdicts[..])
    }
}

// For searches.
impl Machine {
    pub(crate) fn seal_once(&self) {
        if !self.sealed.replace(true) {
            self.seal();
        }
    }

    pub(crate) fn set_policy(&self, policy: Policy) {
        *self.policy.borrow_mut() = policy;
    }

    /// Whether executions only show who touches what: no state is looked up, nothing starts again.
    pub(crate) fn set_learning(&self, learning: bool) {
        self.set_hashing(!learning);
        self.state.borrow_mut().summary.restarts = !learning;
    }

    pub(crate) fn set_hashing(&self, hashing: bool) {
        self.state.borrow_mut().hashing = hashing;
        self.arena.set_hashing(hashing);
    }

    pub(crate) fn set_recording(&self, recording: bool) {
        self.recording.set(recording);
        self.kasan.borrow_mut().set_recording(recording);
    }

    pub(crate) fn replay_is_at_end(&self) -> bool {
        !matches!(&*self.policy.borrow(), Policy::Replay(cursor) if !cursor.is_at_end())
    }

    /// The execution under way ends, or may: a search that asks is told.
    pub(crate) fn execution_ends(&self) {
        if let Policy::Dfs(dfs) = &mut *self.policy.borrow_mut() {
            dfs.has_ended();
        }
    }

    /// The run of the schedule that was replayed in which the step is that does not fit.
    pub(crate) fn misfit(&self) -> usize {
        let Policy::Replay(cursor) = &*self.policy.borrow() else { unreachable!("a schedule was replayed") };
        let has_stopped = self.state.borrow().end == Some(End::Stale);
        if has_stopped { cursor.asked() } else { cursor.next_run() }
    }

    pub(crate) fn places(&self) -> usize {
        self.state.borrow().places.len()
    }

    pub(crate) fn points(&self) -> u64 {
        self.state.borrow().points
    }

    pub(crate) fn steps(&self) -> u64 {
        self.state.borrow().steps
    }

    pub(crate) fn summary_must_start_again(&self) -> bool {
        self.state.borrow().summary.must_start_again()
    }

    pub(crate) fn summary_start_again(&self) {
        self.state.borrow_mut().summary.start_again();
        self.weak.borrow_mut().start_again();
    }

    pub(crate) fn never_met(&self) -> Vec<String> {
        let met = self.met.borrow();
        let pairs = self.config.dropped.iter().chain(&self.config.relaxed).zip(met.iter());
        pairs.filter(|&(_, &met)| !met).map(|(label, _)| label.clone()).collect()
    }
}
