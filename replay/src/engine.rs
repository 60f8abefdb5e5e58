//! One strategy's switch path over the traced machine: the library's code, driven action by action.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use lazytlb::any::AnyPlatform;
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::memory::Label;
use lazytlb_core::mm::{ARef, Mm, MmWithUser};
use lazytlb_core::mm_switch::{BroadcastFlush, IpiFlush, IpiUnlazy, MmSwitch};
use lazytlb_core::platform::{IrqsOff, Platform, Root};
use lazytlb_core::switcher::{Switcher, Task};
use lazytlb_sched_model::accounted::Accounted;
use lazytlb_sched_model::strategies::WithStrategy;
use lazytlb_sched_model::{Rules, Strategy};

use crate::platform::{Counts, Life, MOST_CPUS, Replay, Traced, hardware, on_cpu, swap_counts};

/// Where a task is kept; used again when it is gone.
pub(crate) type Slot = u32;

/// What a new task runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NewMm {
    /// It is a kernel thread.
    None,
    /// An address space of its own.
    Own,
    /// That of another task.
    Of(Slot),
}

/// Something that the traced kernel did, as the switch path sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// A CPU is seen for the first time: it runs its idle task.
    Boot(Slot),
    /// A CPU comes back online, with the idle task that it has had.
    Online(Slot),
    /// There is a new task.
    New(Slot, NewMm),
    /// The CPU goes from one task to another.
    Switch(Slot, Slot),
    /// The running task has a new address space.
    Exec(Slot),
    /// A task turns out to share the address space of another one. With `true`, it runs.
    Share(Slot, Slot, bool),
    /// The running task gives its address space up. With `true`, the last put comes later.
    Exit(Slot, bool),
    /// It comes now.
    LastPut(Slot),
    /// A flush of freed page tables hits the CPU.
    Flush,
    /// The task is gone.
    Gone(Slot),
}

/// An action with its time and place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) time: u64,
    pub(crate) cpu: u32,
    pub(crate) action: Action,
}

/// A strategy at work.
pub(crate) trait Run {
    /// Does one step.
    fn step(&mut self, step: Step);
    /// Does many, and counts.
    fn steps(&mut self, steps: &[Step]);
    /// What was counted so far; `now` is the end of the trace.
    fn counts(&self, now: u64) -> Counts;
}

/// The engine of a strategy on a machine's rules, one of [`Rules::SIMPLE`]: no trace says what was cached.
pub(crate) fn engine(strategy: Strategy, rules: Rules) -> Box<dyn Run> {
    match rules {
        Rules::Ipi => on_rules::<IpiFlush>(strategy),
        Rules::IpiUnlazy => on_rules::<IpiUnlazy>(strategy),
        Rules::Broadcast => on_rules::<BroadcastFlush>(strategy),
        other => panic!("{other}: not among the rules that a trace can be replayed on"),
    }
}

fn on_rules<R>(strategy: Strategy) -> Box<dyn Run>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool> + AnyPlatform,
{
    strategy.with(OnRules(PhantomData::<R>))
}

/// The traced machine on its rules, still without a strategy.
struct OnRules<R>(PhantomData<R>);

impl<R> WithStrategy<Replay<R>> for OnRules<R>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool>,
{
    type Output = Box<dyn Run>;

    fn call<S: Accounted<Replay<R>>>(self, strategy: S) -> Box<dyn Run> {
        Box::new(Engine::<R, _>::new(strategy))
    }
}

/// A task: what the library has of it, its address space, and a user that puts off the end of that.
struct Kept<R: 'static, S: LazyTlb<Replay<R>>>
where
    Replay<R>: Platform<MmData = Life>,
{
    task: Box<Task<Replay<R>>>,
    mm: Option<NonNull<Mm<Replay<R>, S>>>,
    held: Option<ARef<MmWithUser<Replay<R>, S>>>,
    is_idle: bool,
}

pub(crate) struct Engine<R: 'static, S: LazyTlb<Replay<R>>>
where
    Replay<R>: Platform<MmData = Life>,
{
    switcher: &'static Switcher<Replay<R>, S>,
    tasks: Vec<Option<Kept<R, S>>>,
    machine: Traced,
    counts: Counts,
    /// How many address spaces there have been: each has a root of its own.
    mms: usize,
}

const INIT_ROOT: Root = Root(0);

/// An address space, and a user of it.
type NewUser<R, S> = (NonNull<Mm<Replay<R>, S>>, ARef<MmWithUser<Replay<R>, S>>);

impl<R, S: LazyTlb<Replay<R>>> Engine<R, S>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool>,
{
    pub(crate) fn new(strategy: S) -> Self {
        // Leaked, as a kernel's own statics would stay: one for each engine.
        let init_mm: NonNull<Mm<Replay<R>, S>> = NonNull::from(Box::leak(Box::<Mm<Replay<R>, S>>::new_uninit())).cast();
        // SAFETY: init_mm is written right below and never freed.
        let switcher: &'static _ = Box::leak(Box::new(unsafe { Switcher::new(Replay::NEW, strategy, init_mm) }));
        // SAFETY: the switcher is leaked too.
        let value = unsafe { Self::new_mm(switcher, INIT_ROOT, Life::new(|_| unreachable!("init_mm is never freed"))) };
        // SAFETY: it is the leaked allocation, and nobody has used it yet.
        unsafe { init_mm.write(value) };
        let on_ipi: fn(*const ()) = |switcher| {
            // SAFETY: it is set together with the switcher it gets, and that one is leaked.
            let switcher = unsafe { &*switcher.cast::<Switcher<Replay<R>, S>>() };
            // SAFETY: kick runs it with interrupts off.
            switcher.on_ipi(&unsafe { IrqsOff::assume(Replay::NEW) });
        };
        let roots = Box::leak(vec![Cell::new(INIT_ROOT); MOST_CPUS].into_boxed_slice());
        let collect: fn(*const ()) = |switcher| {
            // SAFETY: as for `on_ipi`.
            unsafe { &*switcher.cast::<Switcher<Replay<R>, S>>() }.collect();
        };
        let work_at = Box::leak(Box::new(Cell::new(None)));
        let machine = Traced { switcher: core::ptr::from_ref(switcher).cast(), on_ipi, collect, work_at, roots };
        Engine { switcher, tasks: Vec::new(), machine, mms: 0, counts: Counts::default() }
    }

    /// # Safety
    /// The switcher outlives the mm.
    unsafe fn new_mm(switcher: &'static Switcher<Replay<R>, S>, root: Root, life: Life) -> Mm<Replay<R>, S> {
        // SAFETY: the caller's; roots are only numbers here.
        unsafe { Mm::new(NonNull::from(switcher), Replay::NEW, root, life) }
    }

    fn make_mm(&mut self) -> NewUser<R, S> {
        self.mms += 1;
        let life = Life::new(|mm| {
            // SAFETY: the platform frees what is made below, once.
            drop(unsafe { Box::from_raw(mm.cast::<Mm<Replay<R>, S>>()) });
        });
        // SAFETY: the switcher is leaked.
        let mm = Box::into_raw(Box::new(unsafe { Self::new_mm(self.switcher, Root(self.mms), life) }));
        // SAFETY: just allocated.
        let shared = unsafe { &*mm };
        shared.core().data().allocation.set(mm.cast());
        // SAFETY: asked once; the box stays where it is.
        (NonNull::from(shared), unsafe { shared.into_user() })
    }

    /// A user of the address space of a task that has one.
    fn user(mm: NonNull<Mm<Replay<R>, S>>) -> ARef<MmWithUser<Replay<R>, S>> {
        // SAFETY: the task that it belongs to owns a user of it.
        ARef::from(unsafe { mm.cast::<MmWithUser<Replay<R>, S>>().as_ref() })
    }

    fn kept(&mut self, slot: Slot) -> &mut Kept<R, S> {
        self.tasks[slot as usize].as_mut().expect("the driver names tasks that it has made")
    }

    /// The address space of a task that has one.
    pub(crate) fn mm_of(&self, slot: Slot) -> NonNull<Mm<Replay<R>, S>> {
        let kept = self.tasks[slot as usize].as_ref().expect("a task that was made");
        kept.mm.expect("a user task")
    }

    pub(crate) fn switcher(&self) -> &'static Switcher<Replay<R>, S> {
        self.switcher
    }

    pub(crate) fn machine(&self) -> Traced {
        self.machine
    }

    pub(crate) fn task(&self, slot: Slot) -> &Task<Replay<R>> {
        &self.tasks[slot as usize].as_ref().expect("the driver names tasks that it has made").task
    }

    fn new_task(&mut self, slot: Slot, mm: NewMm) {
        let (mm, user) = match mm {
            NewMm::None => (None, None),
            NewMm::Own => {
                let (mm, user) = self.make_mm();
                (Some(mm), Some(user))
            }
            NewMm::Of(other) => match self.kept(other).mm {
                Some(mm) => (Some(mm), Some(Self::user(mm))),
                None => (None, None),
            },
        };
        let task = Box::new(Task::kthread());
        if let Some(user) = user {
            // SAFETY: the task is new.
            unsafe { task.copy_mm(user) };
        }
        if self.tasks.len() <= slot as usize {
            self.tasks.resize_with(slot as usize + 1, || None);
        }
        self.tasks[slot as usize] = Some(Kept { task, mm, held: None, is_idle: false });
    }

    fn irqs_off<T>(f: impl FnOnce(&IrqsOff<'_, Replay<R>>) -> T) -> T {
        let flags = Replay::<R>::NEW.local_irq_save(Label::NONE);
        // SAFETY: just disabled.
        let result = f(&unsafe { IrqsOff::assume(Replay::NEW) });
        // SAFETY: saved above, and the IrqsOff is gone.
        unsafe { Replay::<R>::NEW.local_irq_restore(flags) };
        result
    }

    /// The worker comes if it is time, on whichever CPU does something next.
    fn work(&self, now: u64) {
        let Traced { switcher, collect, work_at, .. } = self.machine;
        if work_at.get().is_some_and(|at| at <= now) {
            work_at.set(None);
            collect(switcher);
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Boot(idle) => {
                self.new_task(idle, NewMm::None);
                self.kept(idle).is_idle = true;
                self.act(Action::Online(idle));
            }
            Action::Online(idle) => {
                let idle = self.task(idle);
                // SAFETY: tasks are boxed, and idle tasks stay for good.
                Self::irqs_off(|irqs_off| unsafe { self.switcher.sched_init(irqs_off, idle) });
            }
            Action::New(slot, mm) => self.new_task(slot, mm),
            Action::Switch(prev, next) => {
                let left = Self::irqs_off(|irqs_off| {
                    // SAFETY: the driver keeps track of who runs where; a task stays until it is switched away from.
                    unsafe { self.switcher.context_switch(irqs_off, self.task(prev), self.task(next)) };
                    self.switcher.finish_task_switch(irqs_off)
                });
                Replay::<R>::NEW.preempt_disable();
                left.mmdrop_lazy_tlb_sched();
                // SAFETY: disabled above.
                unsafe { Replay::<R>::NEW.preempt_enable() };
                if self.kept(next).is_idle {
                    // Whether the CPU will sleep for long it cannot know here: it is asked each time.
                    self.switcher.cpu_idle_enter();
                }
            }
            Action::Exec(slot) => {
                let (mm, user) = self.make_mm();
                self.kept(slot).mm = Some(mm);
                // SAFETY: it runs.
                unsafe { self.switcher.exec_mmap(self.task(slot), user) };
            }
            Action::Share(slot, other, runs) => {
                let Some(mm) = self.kept(other).mm else { return };
                let user = Self::user(mm);
                if runs {
                    self.kept(slot).mm = Some(mm);
                    // SAFETY: it runs.
                    unsafe { self.switcher.exec_mmap(self.task(slot), user) };
                } else {
                    let old = self.kept(slot).mm.replace(mm);
                    let task = self.task(slot);
                    // SAFETY: it does not run, and what its word owned is dropped right below.
                    unsafe { task.copy_mm(user) };
                    // SAFETY: the word owned this user.
                    drop(old.map(|old| unsafe { ARef::<MmWithUser<Replay<R>, S>>::from_raw(old.cast()) }));
                }
            }
            Action::Exit(slot, holds) => {
                let kept = self.kept(slot);
                let Some(mm) = kept.mm.take() else { return };
                kept.held = holds.then(|| Self::user(mm));
                // SAFETY: it runs.
                unsafe { self.switcher.exit_mm(self.task(slot)) };
            }
            Action::LastPut(slot) => drop(self.kept(slot).held.take()),
            Action::Flush => Self::irqs_off(|irqs_off| {
                // SAFETY: the replay's architectures only compare it.
                unsafe { self.switcher.flush_active_mm(irqs_off, true) };
            }),
            Action::Gone(slot) => {
                let kept = self.tasks[slot as usize].take();
                if let Some(mm) = kept.and_then(|kept| kept.mm) {
                    // Its exit was lost, and with it the put of the user that its word owned.
                    // SAFETY: the task is not looked at any more.
                    drop(unsafe { ARef::<MmWithUser<Replay<R>, S>>::from_raw(mm.cast()) });
                }
            }
        }
    }
}

impl<R: 'static, S: LazyTlb<Replay<R>>> Drop for Engine<R, S>
where
    Replay<R>: Platform<MmData = Life>,
{
    /// What is held back may still interrupt other CPUs. What tasks have at the end of the trace stays with the switcher.
    fn drop(&mut self) {
        hardware(|hardware| hardware.machine.set(Some(self.machine)));
        let others = swap_counts(self.counts);
        for kept in self.tasks.iter_mut().flatten() {
            kept.held = None;
        }
        swap_counts(others);
    }
}

impl<R, S: LazyTlb<Replay<R>>> Run for Engine<R, S>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool>,
{
    fn step(&mut self, step: Step) {
        self.steps(&[step]);
    }

    fn steps(&mut self, steps: &[Step]) {
        hardware(|hardware| hardware.machine.set(Some(self.machine)));
        let others = swap_counts(self.counts);
        for step in steps {
            hardware(|hardware| hardware.now.set(step.time));
            on_cpu(step.cpu as usize, || {
                self.work(step.time);
                self.act(step.action);
            });
        }
        self.counts = swap_counts(others);
    }

    fn counts(&self, now: u64) -> Counts {
        let mut counts = self.counts;
        counts.end(now);
        counts
    }
}
