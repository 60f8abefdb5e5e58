//! What each path of the switch path costs under a strategy: counted by running its code, not written down.
//!
//! A machine of four CPUs that has gone every path before, so that nothing happens for the first time: each CPU is in the
//! masks that it will be in. Then each path is gone once more and what the strategy's code did is counted, on all CPUs.

use core::marker::PhantomData;
use core::ptr::NonNull;

use lazytlb::any::AnyPlatform;
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::mm::{Mm, MmWithUser};
use lazytlb_core::mm_switch::{BroadcastFlush, FlushRange, IpiFlush, IpiUnlazy, MmSwitch};
use lazytlb_core::platform::Platform;
use lazytlb_sched_model::accounted::Accounted;
use lazytlb_sched_model::strategies::WithStrategy;
use lazytlb_sched_model::{Rules, Strategy};

use crate::engine::{Action, Engine, NewMm, Slot};
use crate::platform::{Counts, Life, Replay, hardware, on_cpu, power_on, swap_counts};

/// Makes the list of paths: the one place that has all of them.
macro_rules! paths {
    ($($(#[$doc:meta])* $path:ident: $number:literal, $name:literal;)*) => {
        /// A path whose cost is counted, by its number in ARCHITECTURE.md.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Path {
            $($(#[$doc])* $path,)*
        }

        impl Path {
            /// All of them.
            pub const ALL: &'static [Path] = &[$(Path::$path),*];

            /// Its number in ARCHITECTURE.md; of three that are P7 and P8 together, 8.
            pub const fn number(self) -> u8 {
                match self {
                    $(Path::$path => $number,)*
                }
            }

            /// Its name in tables.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Path::$path => $name,)*
                }
            }
        }
    };
}

paths! {
    /// P1: from a user task to a kernel thread.
    UserToKernel: 1, "P1 user to kthread";
    /// P2: from one kernel thread to another, which has run there before.
    KernelToKernel: 2, "P2 kthread to kthread";
    /// P3: from a kernel thread back to the same user's task.
    KernelToSame: 3, "P3 kthread to same user";
    /// P4: from a kernel thread to another user's task.
    KernelToOther: 4, "P4 kthread to other user";
    /// P5: from one user's task to another's.
    UserToUser: 5, "P5 user to user";
    /// P6: a task that is not the last user exits.
    Exit: 6, "P6 exit_mm, not the last";
    /// P7 and P8: the last user goes, nobody else references or borrows the mm.
    LastPut: 8, "P7+P8 last mmput";
    /// P7 and P8, with one other CPU asleep on the mm; until it is freed or waits.
    LastPutBorrowed: 8, "P7+P8 last mmput, one CPU asleep on it";
    /// What comes after, when that CPU goes on to another user.
    BorrowerGoesOn: 8, "then that CPU goes on";
    /// P9: a CPU that borrows goes offline.
    Offline: 9, "P9 CPU offline";
    /// P10: a CPU comes online.
    Online: 10, "P10 CPU online";
    /// P11: a kernel thread that borrows adopts an mm.
    UseMm: 11, "P11 kthread_use_mm";
    /// P12: it gives it back.
    UnuseMm: 12, "P12 kthread_unuse_mm";
    /// P13: a user task execs, the only user of its mm.
    Exec: 13, "P13 exec by a user";
    /// P14: a kernel thread that borrows execs.
    ExecByKernel: 14, "P14 exec by a kthread";
    /// P15: a user task unhooks page tables of its mm and flushes it, which one other CPU borrows.
    FlushBorrowed: 15, "P15 flush, one CPU lazy";
}

/// What each path costs under a strategy on a machine's rules.
///
/// # Panics
/// If the rules are not among [`Rules::SIMPLE`].
pub fn costs(strategy: Strategy, rules: Rules) -> Vec<(Path, Counts)> {
    match rules {
        Rules::Ipi => on_rules::<IpiFlush>(strategy),
        Rules::IpiUnlazy => on_rules::<IpiUnlazy>(strategy),
        Rules::Broadcast => on_rules::<BroadcastFlush>(strategy),
        other => panic!("{other}: not among the rules that are counted"),
    }
}

fn on_rules<R>(strategy: Strategy) -> Vec<(Path, Counts)>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool> + AnyPlatform,
{
    strategy.with(OnRules(PhantomData::<R>))
}

struct OnRules<R>(PhantomData<R>);

impl<R> WithStrategy<Replay<R>> for OnRules<R>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool>,
{
    type Output = Vec<(Path, Counts)>;

    fn call<S: Accounted<Replay<R>>>(self, strategy: S) -> Self::Output {
        Course::new(Engine::<R, S>::new(strategy)).run()
    }
}

const CPUS: Slot = 4;
/// The CPU that runs its idle task all along, and comes online with it once more.
const IDLE: Slot = CPUS - 1;
/// Tasks by their slots; the idle tasks are `0..CPUS`.
const KTHREAD: Slot = CPUS;
const OTHER_KTHREAD: Slot = CPUS + 1;
const A: Slot = CPUS + 2;
const B: Slot = CPUS + 3;
const FIRST_FREE: Slot = CPUS + 4;

/// The paths, one after the other, on CPU 0. It stands on A's task between them.
struct Course<R: 'static, S: LazyTlb<Replay<R>>>
where
    Replay<R>: Platform<MmData = Life>,
{
    engine: Engine<R, S>,
    next: Slot,
    counted: Vec<(Path, Counts)>,
}

impl<R, S> Course<R, S>
where
    R: MmSwitch<Replay<R>> + 'static,
    Replay<R>: Platform<MmData = Life, Arch = R, IrqFlags = bool>,
    S: LazyTlb<Replay<R>>,
{
    fn new(engine: Engine<R, S>) -> Self {
        power_on();
        hardware(|hardware| hardware.machine.set(Some(engine.machine())));
        Course { engine, next: FIRST_FREE, counted: Vec::new() }
    }

    fn run(mut self) -> Vec<(Path, Counts)> {
        for cpu in 0..CPUS {
            on_cpu(cpu as usize, || self.engine.act(Action::Boot(cpu)));
        }
        for kthread in [KTHREAD, OTHER_KTHREAD] {
            self.act(Action::New(kthread, NewMm::None));
        }
        for user in [A, B] {
            self.act(Action::New(user, NewMm::Own));
        }
        self.act(Action::Switch(0, A));
        self.go_all();
        self.counted.clear();
        self.go_all();
        self.counted
    }

    fn act(&mut self, action: Action) {
        on_cpu(0, || self.engine.act(action));
    }

    fn on(&mut self, cpu: Slot, action: Action) {
        on_cpu(cpu as usize, || self.engine.act(action));
    }

    /// Counts what `f` does.
    fn count(&mut self, path: Path, f: impl FnOnce(&mut Self)) {
        let before = swap_counts(Counts::default());
        swap_counts(before.carried_on());
        f(self);
        let counted = swap_counts(Counts::default());
        swap_counts(counted.carried_on());
        self.counted.push((path, counted));
    }

    fn new_task(&mut self, mm: NewMm) -> Slot {
        self.next += 1;
        let slot = self.next;
        self.act(Action::New(slot, mm));
        slot
    }

    fn go_all(&mut self) {
        self.count(Path::UserToKernel, |this| this.act(Action::Switch(A, KTHREAD)));
        self.act(Action::Switch(KTHREAD, OTHER_KTHREAD));
        self.count(Path::KernelToKernel, |this| this.act(Action::Switch(OTHER_KTHREAD, KTHREAD)));
        self.count(Path::KernelToSame, |this| this.act(Action::Switch(KTHREAD, A)));
        self.act(Action::Switch(A, KTHREAD));
        self.count(Path::KernelToOther, |this| this.act(Action::Switch(KTHREAD, B)));
        self.count(Path::UserToUser, |this| this.act(Action::Switch(B, A)));
        self.exits();
        self.flush();
        self.kernel_threads();
        self.count(Path::Offline, |this| {
            on_cpu(0, || this.engine.switcher().sched_cpu_wait_empty());
        });
        self.count(Path::Online, |this| this.on(IDLE, Action::Online(IDLE)));
        self.act(Action::Switch(KTHREAD, A));
    }

    /// P6 to P8 and P13.
    fn exits(&mut self) {
        let thread = self.new_task(NewMm::Of(A));
        self.act(Action::Switch(A, thread));
        self.count(Path::Exit, |this| this.act(Action::Exit(thread, false)));
        self.act(Action::Switch(thread, A));
        self.act(Action::Gone(thread));

        // An mm of its own, put from a kernel thread's context: nobody borrows it.
        let held = self.new_task(NewMm::Own);
        self.count(Path::LastPut, |this| this.act(Action::Gone(held)));

        let sleeper = self.new_task(NewMm::Own);
        let last = self.new_task(NewMm::Of(sleeper));
        self.on(1, Action::Switch(1, sleeper));
        self.on(1, Action::Exit(sleeper, false));
        self.on(1, Action::Switch(sleeper, 1));
        // Made before the other one is freed: at the same address it would be taken for it where nothing protects it.
        let other = self.new_task(NewMm::Own);
        self.count(Path::LastPutBorrowed, |this| this.act(Action::Gone(last)));
        self.count(Path::BorrowerGoesOn, |this| this.on(1, Action::Switch(1, other)));
        self.on(1, Action::Exit(other, false));
        self.on(1, Action::Switch(other, 1));
        // A CPU that sleeps on an mm would have the next paths pay for it, under the epochs.
        on_cpu(1, || self.engine.switcher().sched_cpu_wait_empty());
        for gone in [sleeper, other] {
            self.act(Action::Gone(gone));
        }

        let execs = self.new_task(NewMm::Own);
        self.act(Action::Switch(A, execs));
        self.count(Path::Exec, |this| this.act(Action::Exec(execs)));
        self.act(Action::Switch(execs, A));
        self.act(Action::Gone(execs));
    }

    /// P15, the CPU that borrows having come from another thread of the one that flushes.
    fn flush(&mut self) {
        let thread = self.new_task(NewMm::Of(A));
        self.on(1, Action::Switch(1, thread));
        self.on(1, Action::Switch(thread, 1));
        let a: NonNull<Mm<Replay<R>, S>> = self.engine.mm_of(A);
        self.count(Path::FlushBorrowed, |this| {
            // SAFETY: the task of A keeps a user of it.
            let a = unsafe { a.as_ref() };
            on_cpu(0, || this.engine.switcher().flush_tlb_mm_range(a, FlushRange::All, true));
        });
        on_cpu(1, || self.engine.switcher().sched_cpu_wait_empty());
        self.act(Action::Gone(thread));
    }

    /// P11, P12 and P14; ends on a kernel thread that borrows.
    fn kernel_threads(&mut self) {
        self.act(Action::Switch(A, KTHREAD));
        let b: NonNull<MmWithUser<Replay<R>, S>> = self.engine.mm_of(B).cast();
        self.count(Path::UseMm, |this| {
            // SAFETY: the task of B keeps a user of it.
            let b = unsafe { b.as_ref() };
            // SAFETY: the kernel thread runs.
            on_cpu(0, || unsafe { this.engine.switcher().kthread_use_mm(this.engine.task(KTHREAD), b) });
        });
        self.count(Path::UnuseMm, |this| {
            // SAFETY: the kernel thread runs.
            on_cpu(0, || unsafe { this.engine.switcher().kthread_unuse_mm(this.engine.task(KTHREAD)) });
        });
        let helper = self.new_task(NewMm::None);
        self.act(Action::Switch(KTHREAD, helper));
        self.count(Path::ExecByKernel, |this| this.act(Action::Exec(helper)));
        self.act(Action::Switch(helper, A));
        self.act(Action::Gone(helper));
        self.act(Action::Switch(A, KTHREAD));
    }
}
