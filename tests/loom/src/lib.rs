//! A platform over loom's atomics: loom explores the executions that C11 allows, release, acquire and fences included.
//!
//! loom is a second opinion on the orderings, independent of the lab: it knows no interrupts and no hardware, and two
//! threads are as much as it explores completely. It is a crate of its own because loom and other explorers must not
//! share a process.
//!
//! What an mm keeps alive is a loom `UnsafeCell`: freeing writes it, a CPU that walks the page tables reads it, so loom
//! itself reports a walk that is not ordered before the free. A flag that loom does not know would show nothing.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::cell::Cell;
use std::sync::Mutex;

use lazytlb_core::memory::{At, AtomicInt, AtomicWord, Label, Memory};
use lazytlb_core::mm::{Mm, MmCore};
use lazytlb_core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange};
use lazytlb_core::native::Native;
use lazytlb_core::platform::{Context, Platform, Root};
use lazytlb_core::{CpuId, CpuMask, IrqsOff, LazyTlb, Switcher, Task};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{self, fence};

/// How many CPUs there are: one for each of loom's threads.
pub const CPUS: usize = 2;

/// The platform.
#[derive(Clone, Copy, Debug)]
pub struct Loom;

/// A loom word.
#[derive(Debug)]
pub struct Word<A>(A);

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// The label whose accesses are made relaxed, to see that the model notices.
static RELAXED: Mutex<&'static str> = Mutex::new("");

fn order(at: impl Into<At>) -> Ordering {
    let at = at.into();
    let weakened = *RELAXED.lock().expect("not poisoned: nothing panics under this lock");
    if !at.label.is_none() && at.label.name() == weakened { Ordering::Relaxed } else { at.order }
}

/// What Linux promises of a value-returning atomic, spelled so that loom understands it.
fn full<R>(rmw: impl FnOnce(Ordering) -> R) -> R {
    fence(Ordering::SeqCst);
    let value = rmw(Ordering::Relaxed);
    fence(Ordering::SeqCst);
    value
}

macro_rules! word {
    ($atomic:ty, $value:ty $(, $generic:ident)?) => {
        impl$(<$generic>)? AtomicWord<$value> for Word<$atomic> {
            fn new(value: $value) -> Self {
                Word(<$atomic>::new(value))
            }
            fn load(&self, at: impl Into<At>) -> $value {
                self.0.load(order(at))
            }
            fn store(&self, value: $value, at: impl Into<At>) {
                self.0.store(value, order(at))
            }
            fn swap(&self, value: $value, at: impl Into<At>) -> $value {
                self.0.swap(value, order(at))
            }
            fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                at: impl Into<At>,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(current, new, order(at), failure)
            }
            fn swap_full(&self, value: $value, _: Label) -> $value {
                full(|order| self.0.swap(value, order))
            }
            fn compare_exchange_full(&self, current: $value, new: $value, _: Label) -> Result<$value, $value> {
                full(|order| self.0.compare_exchange(current, new, order, order))
            }
        }
    };
}

word!(atomic::AtomicUsize, usize);
word!(atomic::AtomicPtr<T>, *mut T, T);

macro_rules! fetch {
    ($($plain:ident $full:ident),*) => {
        impl AtomicInt for Word<atomic::AtomicUsize> {
            $(
                fn $plain(&self, value: usize, at: impl Into<At>) -> usize {
                    self.0.$plain(value, order(at))
                }
                fn $full(&self, value: usize, _: Label) -> usize {
                    full(|order| self.0.$plain(value, order))
                }
            )*
        }
    };
}

fetch!(fetch_add fetch_add_full, fetch_sub fetch_sub_full, fetch_or fetch_or_full, fetch_and fetch_and_full);

impl Memory for Loom {
    type AtomicUsize = Word<atomic::AtomicUsize>;
    type AtomicPtr<T> = Word<atomic::AtomicPtr<T>>;
    // Words of one CPU are not loom's business: only their own thread touches them.
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        let order = order(at);
        if order != Ordering::Relaxed {
            fence(order);
        }
    }

    fn spin_hint(self) {
        loom::thread::yield_now();
    }
}

/// What an mm keeps alive.
#[derive(Debug)]
pub struct Tables(UnsafeCell<bool>);

// SAFETY: a thread of the model is a CPU; loom switches threads only at its own operations and has no interrupts. The
// mms are leaked: freeing one only writes its Tables.
unsafe impl Platform for Loom {
    type Arch = BroadcastFlush;
    type PerCpu<T> = [T; CPUS];
    type MaskWords = [Word<atomic::AtomicUsize>; 1];
    type IrqFlags = ();
    type MmData = Tables;

    fn nr_cpu_ids(self) -> usize {
        CPUS
    }

    fn smp_processor_id(self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }

    fn cpu_online(self, _: CpuId) -> bool {
        true
    }

    fn local_irq_save(self, _: Label) {}

    unsafe fn local_irq_restore(self, (): ()) {}

    fn preempt_disable(self) {}

    unsafe fn preempt_enable(self) {}

    fn context(self) -> Context {
        Context { in_nmi: false, in_hardirq: false, in_softirq: false, preempt_disabled: false, irqs_disabled: false }
    }

    unsafe fn load_root(self, _: Root) {}

    fn read_root(self) -> Root {
        unreachable!("no strategy that asks the hardware runs here");
    }

    fn flush_tlb_local(self) {}

    fn kick(self, _: &CpuMask<Self>) {
        unreachable!("no strategy that interrupts runs here");
    }

    unsafe fn unmap_all(self, _: &MmCore<Self>) {}

    unsafe fn free_tables(self, _: &MmCore<Self>) {}

    unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
        // SAFETY: leaked.
        let tables = &unsafe { mm.as_ref() }.data().0;
        tables.with_mut(|freed| {
            // SAFETY: loom has checked that nobody reads or writes it at the same time.
            let freed = unsafe { &mut *freed };
            assert!(!*freed, "freed twice");
            *freed = true;
        });
    }
}

impl BroadcastTlb for Loom {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {}
}

/// This CPU's hardware walks the tables of `mm`, as it may at any time while it has their root loaded.
fn walk<S: LazyTlb<Loom>>(mm: &Mm<Loom, S>) {
    mm.core().data().0.with(|freed| {
        // SAFETY: loom has checked that nobody writes it at the same time.
        assert!(!unsafe { *freed }, "the hardware walks freed tables");
    });
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn new_mm<S: LazyTlb<Loom>>(switcher: &'static Switcher<Loom, S>, root: usize) -> &'static Mm<Loom, S> {
    let data = Tables(UnsafeCell::new(false));
    // SAFETY: the switcher is leaked, roots are numbers.
    leak(unsafe { Mm::new(NonNull::from(switcher), Loom, Root(root), data) })
}

fn switch<S: LazyTlb<Loom>>(switcher: &Switcher<Loom, S>, prev: &'static Task<Loom>, next: &'static Task<Loom>) {
    // SAFETY: loom has no interrupts.
    let irqs_off = unsafe { IrqsOff::assume(Loom) };
    // SAFETY: the caller keeps track of who runs; tasks are leaked.
    unsafe { switcher.context_switch(&irqs_off, prev, next) };
    switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
}

/// A machine that has not switched yet.
fn machine<S: LazyTlb<Loom>>(strategy: S) -> &'static Switcher<Loom, S> {
    let init_mm = Box::leak(Box::<Mm<Loom, S>>::new_uninit());
    // SAFETY: init_mm is written right below and never freed.
    let switcher = leak(unsafe { Switcher::new(Loom, strategy, NonNull::from(&mut *init_mm).cast()) });
    let data = Tables(UnsafeCell::new(false));
    // SAFETY: the switcher is leaked.
    init_mm.write(unsafe { Mm::new(NonNull::from(switcher), Loom, Root(0), data) });
    switcher
}

fn set_relaxed(label: &'static str) {
    *RELAXED.lock().expect("not poisoned: nothing panics under this lock") = label;
}

/// Checks at the end of an execution that `mm` was freed.
fn assert_freed<S: LazyTlb<Loom>>(mm: &Mm<Loom, S>) {
    mm.core().data().0.with(|freed| {
        // SAFETY: all threads have ended.
        assert!(unsafe { *freed }, "leaked");
    });
}

/// The whole switch path: two CPUs run the two tasks of one mm. Each task exits and goes on borrowing the mm, walks its
/// tables once more, and switches to a task of another mm. Once both have switched again the mm must have been freed,
/// once, and never under a walk.
///
/// # Panics
/// As loom does, if an execution breaks one of that.
pub fn two_exits<S: LazyTlb<Loom> + Copy + Send + Sync>(strategy: S) {
    set_relaxed("");
    loom::model(move || {
        let switcher = machine(strategy);
        let mm = new_mm(switcher, 0xa000);
        // SAFETY: asked once.
        let user = unsafe { mm.into_user() };
        let run = move |cpu: usize, task: &'static Task<Loom>| {
            CPU.with(|id| id.set(cpu));
            // SAFETY: it runs.
            unsafe { switcher.exit_mm(task) };
            walk(mm);
            let other = leak(Task::kthread());
            // SAFETY: asked once.
            let user = unsafe { new_mm(switcher, 0xb000).into_user() };
            // SAFETY: it is new.
            unsafe { other.copy_mm(user) };
            switch(switcher, task, other);
            other
        };
        let start = |cpu: usize| {
            CPU.with(|id| id.set(cpu));
            let (idle, task) = (leak(Task::kthread()), leak(Task::kthread()));
            // SAFETY: loom has no interrupts.
            let irqs_off = unsafe { IrqsOff::assume(Loom) };
            // SAFETY: idle is leaked.
            unsafe { switcher.sched_init(&irqs_off, idle) };
            // SAFETY: it is new.
            unsafe { task.copy_mm(user.clone()) };
            switch(switcher, idle, task);
            task
        };
        let (first, second) = (start(0), start(1));
        // The tasks have their own users now; this one must go before they run, or nobody is last.
        drop(user);
        let remote = loom::thread::spawn(move || run(1, second));
        let first = run(0, first);
        let second = remote.join().expect("a panic in a thread fails the model first");
        // A reference may have been left with a CPU that had just gone on: its next switch drops it.
        for (cpu, task) in [(0, first), (1, second)] {
            CPU.with(|id| id.set(cpu));
            switch(switcher, task, leak(Task::kthread()));
        }
        assert_freed(mm);
    });
}

/// The strategy's steps alone, without the barriers that the switch path has around them: a CPU borrows, puts its user,
/// walks, leaves, and runs its tail; the other puts the last user, or the last but one.
///
/// `relaxed` names the label whose accesses lose their ordering; empty for none.
///
/// # Panics
/// As loom does, if the mm is freed under a walk, twice, or never.
pub fn borrow_and_leave<S: LazyTlb<Loom> + Copy + Send + Sync>(strategy: S, relaxed: &'static str) {
    set_relaxed(relaxed);
    loom::model(move || {
        let switcher = machine(strategy);
        let mm = new_mm(switcher, 0xa000);
        // SAFETY: asked once.
        let user = unsafe { mm.into_user() };
        let borrowers = user.clone();
        // SAFETY: this test is the switch path; it calls the steps in their order.
        let this = unsafe { switcher.cpu(CpuId::new(1)).strategy() };
        // SAFETY: as above.
        let shared = unsafe { switcher.shared() };
        let tail = move || {
            CPU.with(|id| id.set(1));
            // SAFETY: loom has no interrupts.
            let irqs_off = unsafe { IrqsOff::assume(Loom) };
            switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        };
        let borrower = loom::thread::spawn(move || {
            CPU.with(|id| id.set(1));
            strategy.mmgrab_lazy_tlb(Loom, this, shared, mm.core());
            drop(borrowers);
            walk(mm);
            strategy.leave_lazy_tlb(Loom, this);
            tail();
        });
        drop(user);
        borrower.join().expect("a panic in a thread fails the model first");
        tail();
        assert_freed(mm);
    });
}

/// Pair L5: a CPU that owns nothing acquires an mm, and walks its tables if a shared pointer still names it then. The other takes
/// the mm out of that pointer, and frees it unless `holds` finds that the CPU holds it.
///
/// `relaxed` names the label whose accesses and fences lose their ordering; empty for none.
///
/// # Panics
/// As loom does, if the mm is freed under a walk.
pub fn acquire_without_owning<S: LazyTlb<Loom> + Copy + Send + Sync>(
    strategy: S,
    relaxed: &'static str,
    holds: fn(&S::CpuState, *mut MmCore<Loom>) -> bool,
) {
    set_relaxed(relaxed);
    loom::model(move || {
        let switcher = machine(strategy);
        let mm = new_mm(switcher, 0xa000);
        let core = NonNull::from(mm.core());
        let named = leak(atomic::AtomicPtr::new(core.as_ptr()));
        // SAFETY: this test is the switch path; it calls the steps in their order.
        let this = unsafe { switcher.cpu(CpuId::new(1)).strategy() };
        // SAFETY: as above.
        let shared = unsafe { switcher.shared() };
        let reader = loom::thread::spawn(move || {
            CPU.with(|id| id.set(1));
            strategy.mmgrab_lazy_tlb(Loom, this, shared, mm.core());
            if !named.load(Ordering::Relaxed).is_null() {
                walk(mm);
            }
            strategy.leave_lazy_tlb(Loom, this);
        });
        named.store(core::ptr::null_mut(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !holds(this, core.as_ptr()) {
            // SAFETY: nobody holds it, and nobody finds it any more.
            unsafe { Loom.free_mm(core) };
        }
        reader.join().expect("a panic in a thread fails the model first");
    });
}
