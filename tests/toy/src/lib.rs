//! A toy kernel on native memory: any number of CPUs, all run by one thread, one after the other.
//!
//! `on_cpu` says which CPU the thread is just now; a kick runs the target's handler at once. No interleaving, so no
//! proof of anything concurrent; but every path of the library runs natively, and as many CPUs as wanted fit in.

use core::cell::{Cell, RefCell};
use core::marker::PhantomData;
use core::ptr::NonNull;

use lazytlb_core::cpumask::{CpuId, CpuMask};
use lazytlb_core::memory::{At, Label, Memory};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange, IpiFlush, IpiUnlazy};
use lazytlb_core::native::Native;
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, PerCpu, Platform, Root, Warning, Worker};
use lazytlb_core::tlb::{Invlpgb, Tag, TaggedTlb};
use lazytlb_core::{ARef, IrqsOff, LazyTlb, Mm, MmWithUser, Switcher, Task};
use lazytlb_shootdown::{X86_6_12, X86_6_14, X86Broadcast};

/// What all toy machines of this thread share.
#[derive(Debug, Default)]
pub struct Hardware {
    /// The CPU that the thread is just now.
    pub cpu: Cell<usize>,
    /// Whether its interrupts are off.
    pub irqs_off: Cell<bool>,
    /// How often its preemption is disabled.
    pub preempt_count: Cell<usize>,
    /// The CPUs that are offline.
    pub offline: RefCell<Vec<usize>>,
    /// The root that each CPU has loaded.
    pub roots: RefCell<Vec<usize>>,
    /// Roots of mms that were freed, in order.
    pub freed: RefCell<Vec<usize>>,
    /// Interrupts sent since boot.
    pub ipis: Cell<usize>,
    /// Roots loaded since boot.
    pub root_loads: Cell<usize>,
    /// Times that what is cached under one tag was dropped, since boot.
    pub tag_flushes: Cell<usize>,
    /// Broadcasts begun since boot: of one tag, and of all.
    pub broadcasts: Cell<[usize; 2]>,
    /// Those of them that nobody has waited for yet.
    pub unsynced: Cell<usize>,
    /// What the library warned of since boot.
    pub warnings: RefCell<Vec<Warning>>,
    /// Runs a CPU's interrupt handler; set by [`Machine::boot`].
    pub handler: Cell<Option<Handler>>,
    /// The CPUs that are to be left alone.
    pub isolated: RefCell<Vec<usize>>,
    /// What the clock shows.
    pub jiffies: Cell<usize>,
    /// When the worker was asked to come, at the earliest; [`Machine::work`] is the worker.
    pub work_at: Cell<Option<usize>>,
}

/// A switch path without its type, and what to call with it.
pub type Handler = (*const (), fn(*const ()));

thread_local! {
    /// The toy hardware of this thread.
    pub static HW: Hardware = Hardware::default();
}

/// A platform of `CPUS` CPUs with `WORDS` mask words, switched by the rules of `Arch`.
#[derive(Debug)]
pub struct Toy<const CPUS: usize, const WORDS: usize, Arch = BroadcastFlush>(PhantomData<Arch>);

impl<const CPUS: usize, const WORDS: usize, Arch> Toy<CPUS, WORDS, Arch> {
    /// The handle.
    pub const NEW: Self = Toy(PhantomData);
}

impl<const CPUS: usize, const WORDS: usize, Arch> Clone for Toy<CPUS, WORDS, Arch> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<const CPUS: usize, const WORDS: usize, Arch> Copy for Toy<CPUS, WORDS, Arch> {}

impl<const CPUS: usize, const WORDS: usize, Arch> Memory for Toy<CPUS, WORDS, Arch> {
    type AtomicUsize = <Native as Memory>::AtomicUsize;
    type AtomicPtr<T> = <Native as Memory>::AtomicPtr<T>;
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }

    fn spin_hint(self) {
        panic!("nobody else runs: this wait would never end");
    }
}

/// Per-CPU storage on the heap: 4096 CPUs do not fit on a test's stack.
#[derive(Debug)]
pub struct CpuVec<T>(Vec<T>);

impl<T> PerCpu<T> for CpuVec<T> {
    fn from_fn(nr_cpu_ids: usize, init: impl FnMut(CpuId) -> T) -> Self {
        CpuVec((0..nr_cpu_ids).map(CpuId::new).map(init).collect())
    }

    fn get(&self, cpu: CpuId) -> &T {
        &self.0[cpu.get()]
    }
}

/// What the toy keeps in each mm: how to free it. The pointer that it was allocated with, because what the library
/// hands to `free_mm` comes from a shared reference.
#[derive(Clone, Debug)]
pub struct Free {
    allocation: Cell<*mut ()>,
    free: fn(*mut ()),
}

impl Free {
    fn by(free: fn(*mut ())) -> Free {
        Free { allocation: Cell::new(core::ptr::null_mut()), free }
    }

    /// Frees the mm, of which it was part when it was read: called on a copy, because no borrow of what is freed may be
    /// handed to the call that frees it.
    pub fn run(self) {
        (self.free)(self.allocation.get());
    }
}

/// A platform names its architecture, so each rule is a platform of its own; they differ in nothing else.
macro_rules! platform {
    ($arch:ty) => {
        // SAFETY: one thread runs all CPUs, so it is always the CPU that `on_cpu` says; there are no interrupts but the kicks,
        // which run to their end at once; free_mm drops the box that `Machine::mm` made.
        unsafe impl<const CPUS: usize, const WORDS: usize> Platform for Toy<CPUS, WORDS, $arch> {
            type Arch = $arch;
            type PerCpu<T> = CpuVec<T>;
            type MaskWords = [<Native as Memory>::AtomicUsize; WORDS];
            type IrqFlags = bool;
            type MmData = Free;

            const DEBUG_VM: bool = true;

            fn nr_cpu_ids(self) -> usize {
                CPUS
            }

            fn smp_processor_id(self) -> CpuId {
                CpuId::new(HW.with(|hw| hw.cpu.get()))
            }

            fn cpu_online(self, cpu: CpuId) -> bool {
                HW.with(|hw| !hw.offline.borrow().contains(&cpu.get()))
            }

            fn cpu_isolated(self, cpu: CpuId) -> bool {
                HW.with(|hw| hw.isolated.borrow().contains(&cpu.get()))
            }

            fn local_irq_save(self, _: Label) -> bool {
                HW.with(|hw| hw.irqs_off.replace(true))
            }

            unsafe fn local_irq_restore(self, flags: bool) {
                HW.with(|hw| hw.irqs_off.set(flags));
            }

            fn preempt_disable(self) {
                HW.with(|hw| hw.preempt_count.set(hw.preempt_count.get() + 1));
            }

            unsafe fn preempt_enable(self) {
                HW.with(|hw| hw.preempt_count.set(hw.preempt_count.get() - 1));
            }

            fn context(self) -> Context {
                HW.with(|hw| Context {
                    in_nmi: false,
                    in_hardirq: false,
                    in_softirq: false,
                    preempt_disabled: hw.preempt_count.get() > 0,
                    irqs_disabled: hw.irqs_off.get(),
                })
            }

            unsafe fn load_root(self, root: Root) {
                HW.with(|hw| {
                    hw.root_loads.set(hw.root_loads.get() + 1);
                    hw.roots.borrow_mut()[hw.cpu.get()] = root.0;
                });
            }

            fn read_root(self) -> Root {
                HW.with(|hw| Root(hw.roots.borrow()[hw.cpu.get()]))
            }

            fn flush_tlb_local(self) {}

            fn kick(self, targets: &CpuMask<Self>) {
                HW.with(|hw| {
                    let (switcher, handler) = hw.handler.get().expect("a booted machine");
                    for target in targets.cpus(core::sync::atomic::Ordering::Relaxed) {
                        hw.ipis.set(hw.ipis.get() + 1);
                        on_cpu(target.get(), || {
                            let flags = hw.irqs_off.replace(true);
                            handler(switcher);
                            hw.irqs_off.set(flags);
                        });
                    }
                });
            }

            unsafe fn unmap_all(self, _: &MmCore<Self>) {}

            unsafe fn free_tables(self, _: &MmCore<Self>) {}

            unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
                // SAFETY: it is alive until the call below.
                let mm = unsafe { mm.as_ref() };
                HW.with(|hw| hw.freed.borrow_mut().push(mm.root().0));
                mm.data().clone().run();
            }

            fn warn(self, warning: Warning) {
                HW.with(|hw| hw.warnings.borrow_mut().push(warning));
            }
        }

        impl<const CPUS: usize, const WORDS: usize> Worker for Toy<CPUS, WORDS, $arch> {
            fn queue_work(self) {
                self.queue_work_at(self.jiffies());
            }
        }

        impl<const CPUS: usize, const WORDS: usize> Clock for Toy<CPUS, WORDS, $arch> {
            fn jiffies(self) -> usize {
                HW.with(|hw| hw.jiffies.get())
            }

            fn queue_work_at(self, at: usize) {
                HW.with(|hw| hw.work_at.set(Some(hw.work_at.get().map_or(at, |before| before.min(at)))));
            }
        }

        // SAFETY: a kick runs the handler.
        unsafe impl<const CPUS: usize, const WORDS: usize> IpisInterrupt for Toy<CPUS, WORDS, $arch> {}
    };
}

platform!(BroadcastFlush);
platform!(IpiFlush);
platform!(IpiUnlazy);
platform!(X86_6_12);
platform!(X86_6_14);
// With a trim in every flush.
platform!(X86_6_14<6, 1>);
// With a global ASID for what runs on two CPUs.
platform!(X86Broadcast<2, 64, 2>);

// SAFETY: the toy caches nothing.
unsafe impl<const CPUS: usize, const WORDS: usize, Arch> TaggedTlb for Toy<CPUS, WORDS, Arch>
where
    Self: Platform,
{
    fn nr_tags(self) -> usize {
        CPUS + 1
    }

    unsafe fn load_root_tagged(self, root: Root, _: Tag, _: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.load_root(root) };
    }

    fn flush_tag_local(self, _: Tag) {
        HW.with(|hw| hw.tag_flushes.set(hw.tag_flushes.get() + 1));
    }
}

fn broadcast(of_tag: usize, of_all: usize) {
    HW.with(|hw| {
        let [tags, all] = hw.broadcasts.get();
        hw.broadcasts.set([tags + of_tag, all + of_all]);
        hw.unsynced.set(hw.unsynced.get() + 1);
    });
}

// SAFETY: the toy caches nothing.
unsafe impl<const CPUS: usize, const WORDS: usize, Arch> Invlpgb for Toy<CPUS, WORDS, Arch>
where
    Self: Platform,
{
    fn invlpgb_tag(self, _: Tag) {
        broadcast(1, 0);
    }

    fn invlpgb_all(self) {
        broadcast(0, 1);
    }

    fn tlbsync(self) {
        HW.with(|hw| hw.unsynced.set(0));
    }
}

impl<const CPUS: usize, const WORDS: usize> BroadcastTlb for Toy<CPUS, WORDS, BroadcastFlush> {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {}
}

// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl<const CPUS: usize, const WORDS: usize> MaskCoversLazy for Toy<CPUS, WORDS, BroadcastFlush> {}
// SAFETY: IpiUnlazy takes a CPU out of a mask, and ends its borrow in the flush, where it takes active_mm off the mm.
unsafe impl<const CPUS: usize, const WORDS: usize> MaskCoversLazy for Toy<CPUS, WORDS, IpiUnlazy> {
    const FLUSH_ENDS_BORROWS: bool = true;
}

/// Runs `f` as CPU `cpu`.
pub fn on_cpu<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
    let before = HW.with(|hw| hw.cpu.replace(cpu));
    let result = f();
    HW.with(|hw| hw.cpu.set(before));
    result
}

/// A booted toy machine: every CPU runs its idle task on `init_mm`.
#[derive(Debug)]
pub struct Machine<P: Platform<MmData = Free>, S: LazyTlb<P>> {
    /// The switch path.
    pub switcher: &'static Switcher<P, S>,
    /// Each CPU's idle task.
    pub idle: Vec<&'static Task<P>>,
    platform: P,
}

/// The root of `init_mm`.
pub const INIT_ROOT: usize = 0xff00;

impl<P: Platform<MmData = Free>, S: LazyTlb<P>> Machine<P, S> {
    /// Boots a machine; the toy hardware of this thread is reset.
    pub fn boot(platform: P, strategy: S) -> Self {
        let cpus = platform.nr_cpu_ids();
        HW.with(|hw| {
            *hw.roots.borrow_mut() = vec![INIT_ROOT; cpus];
            hw.freed.borrow_mut().clear();
            hw.warnings.borrow_mut().clear();
            hw.offline.borrow_mut().clear();
            hw.isolated.borrow_mut().clear();
            hw.jiffies.set(0);
            hw.work_at.set(None);
            hw.ipis.set(0);
            hw.root_loads.set(0);
            hw.tag_flushes.set(0);
            hw.broadcasts.set([0, 0]);
            hw.unsynced.set(0);
        });
        // Leaked, as a kernel's own statics would stay.
        let init_mm: NonNull<Mm<P, S>> = NonNull::from(Box::leak(Box::<Mm<P, S>>::new_uninit())).cast();
        // SAFETY: init_mm is written right below and never freed.
        let switcher: &'static _ = Box::leak(Box::new(unsafe { Switcher::new(platform, strategy, init_mm) }));
        let data = Free::by(|_| panic!("init_mm was freed"));
        // SAFETY: the switcher is leaked too; the root is never freed.
        let value = unsafe { Mm::new(NonNull::from(switcher), platform, Root(INIT_ROOT), data) };
        // SAFETY: it is the leaked allocation, and nobody has used it yet.
        unsafe { init_mm.write(value) };
        HW.with(|hw| {
            hw.handler.set(Some((core::ptr::from_ref(switcher).cast(), |switcher| {
                // SAFETY: the handler was set together with the switcher it gets, and that one is leaked.
                let switcher = unsafe { &*switcher.cast::<Switcher<P, S>>() };
                // SAFETY: kick runs it with interrupts off.
                let irqs_off = unsafe { IrqsOff::assume(switcher.platform()) };
                switcher.on_ipi(&irqs_off);
            })));
        });
        let idle: Vec<&'static Task<P>> = (0..cpus).map(|_| &*Box::leak(Box::new(Task::kthread()))).collect();
        let machine = Machine { switcher, idle, platform };
        for cpu in 0..cpus {
            on_cpu(cpu, || {
                machine.irqs_off(|irqs_off| {
                    // SAFETY: idle tasks are leaked.
                    unsafe { switcher.sched_init(irqs_off, machine.idle[cpu]) }
                });
            });
        }
        HW.with(|hw| hw.root_loads.set(0));
        machine
    }

    /// Runs `f` with interrupts off.
    pub fn irqs_off<R>(&self, f: impl FnOnce(&IrqsOff<'_, P>) -> R) -> R {
        let flags = self.platform.local_irq_save(Label::NONE);
        // SAFETY: just disabled.
        let result = f(&unsafe { IrqsOff::assume(self.platform) });
        // SAFETY: saved above, and the IrqsOff is gone.
        unsafe { self.platform.local_irq_restore(flags) };
        result
    }

    /// Runs `f` with preemption off.
    pub fn preempt_off<R>(&self, f: impl FnOnce() -> R) -> R {
        self.platform.preempt_disable();
        let result = f();
        // SAFETY: disabled above.
        unsafe { self.platform.preempt_enable() };
        result
    }

    /// A new mm with one user.
    pub fn mm(&self, root: usize) -> ARef<MmWithUser<P, S>> {
        let data = Free::by(|mm| {
            // SAFETY: the platform frees what was made below, once.
            drop(unsafe { Box::from_raw(mm.cast::<Mm<P, S>>()) });
        });
        // SAFETY: the switcher is leaked; roots are numbers.
        let mm = unsafe { Mm::new(NonNull::from(self.switcher), self.platform, Root(root), data) };
        let mm = Box::into_raw(Box::new(mm));
        // SAFETY: just allocated.
        let shared = unsafe { &*mm };
        shared.core().data().allocation.set(mm.cast());
        // SAFETY: asked once; the box stays where it is.
        unsafe { shared.into_user() }
    }

    /// A task with that mm.
    pub fn user(&self, mm: ARef<MmWithUser<P, S>>) -> &'static Task<P> {
        let task = self.kthread();
        // SAFETY: it is new.
        unsafe { task.copy_mm(mm) };
        task
    }

    /// A kernel thread.
    pub fn kthread(&self) -> &'static Task<P> {
        Box::leak(Box::new(Task::kthread()))
    }

    /// Switches the current CPU from `prev` to `next`, tail included.
    pub fn switch(&self, prev: &'static Task<P>, next: &'static Task<P>) {
        let prev_mm = self.irqs_off(|irqs_off| {
            // SAFETY: the tests keep track of who runs; tasks are leaked.
            unsafe { self.switcher.context_switch(irqs_off, prev, next) };
            self.switcher.finish_task_switch(irqs_off)
        });
        self.preempt_off(|| prev_mm.mmdrop_lazy_tlb_sched());
    }

    /// Time goes on by so many ticks, and the worker comes as often as it is asked to, on the current CPU.
    pub fn work(&self, ticks: usize) {
        HW.with(|hw| hw.jiffies.set(hw.jiffies.get() + ticks));
        while HW.with(|hw| hw.work_at.get().is_some_and(|at| at <= hw.jiffies.get())) {
            HW.with(|hw| hw.work_at.set(None));
            self.switcher.collect();
        }
    }

    /// The root that `cpu` has loaded.
    pub fn root(&self, cpu: usize) -> usize {
        HW.with(|hw| hw.roots.borrow()[cpu])
    }

    /// The roots of the mms freed so far.
    pub fn freed(&self) -> Vec<usize> {
        HW.with(|hw| hw.freed.borrow().clone())
    }

    /// What the library warned of since boot.
    pub fn warnings(&self) -> Vec<Warning> {
        HW.with(|hw| hw.warnings.borrow().clone())
    }

    /// Whether `task`'s mm word names `mm`.
    pub fn owns(&self, task: &Task<P>, mm: &Mm<P, S>) -> bool {
        task.mm() == Some(MmPtr::from(mm.core()))
    }
}
