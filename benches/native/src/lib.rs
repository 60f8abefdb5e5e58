//! The strategies' hot paths on native memory, to be timed.
//!
//! [`Bare`] is a platform that costs nothing: one thread is CPU 0, and interrupts, preemption and the MMU are empty
//! calls, but for one store where a root would be loaded. What is timed is therefore the library's own code, without
//! contention, on lines that are in the cache: a lower bound, to compare strategies by. What a second CPU does to a
//! shared counter cannot be seen here.

pub mod mmu;
pub mod notifier;

use core::hint::black_box;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::*};
use core::time::Duration;
use std::time::Instant;

use lazytlb::{
    AnyLazyTlb, CpuId, CpuMask, EpochPinned, EpochQs, GeneralHazard, HazardConvert, HazardDeadline, HazardIpi, LazyFix,
    LazyTlb, NoLazy, Platform, Refcount, RefcountDeferred, RefcountPerCpu, Shootdown, ShootdownBatched, Task,
    UsersOnly,
};
use lazytlb_adapters::{ArcPerCpu, CrossbeamEpoch};
use lazytlb_core::memory::{At, Label, Memory};
use lazytlb_core::mm::MmCore;
use lazytlb_core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange};
use lazytlb_core::native::Native;
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, Root, Worker};
use lazytlb_toy::{CpuVec, Free, Machine};

/// A platform of `CPUS` CPUs of which only CPU 0 ever runs.
#[derive(Debug)]
pub struct Bare<const CPUS: usize>(PhantomData<()>);

impl<const CPUS: usize> Bare<CPUS> {
    /// The handle.
    pub const NEW: Self = Bare(PhantomData);
}

impl<const CPUS: usize> Clone for Bare<CPUS> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<const CPUS: usize> Copy for Bare<CPUS> {}

/// What the MMU would have loaded.
static CR3: AtomicUsize = AtomicUsize::new(0);

impl<const CPUS: usize> Memory for Bare<CPUS> {
    type AtomicUsize = <Native as Memory>::AtomicUsize;
    type AtomicPtr<T> = <Native as Memory>::AtomicPtr<T>;
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    #[inline(always)]
    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }

    fn spin_hint(self) {
        panic!("nobody else runs: this wait would never end");
    }
}

/// Mask words for the most CPUs that are measured.
const WORDS: usize = 64;

// SAFETY: one thread is CPU 0 and nobody interrupts it; free_mm drops the box that the mm is in.
unsafe impl<const CPUS: usize> Platform for Bare<CPUS> {
    type Arch = BroadcastFlush;
    type PerCpu<T> = CpuVec<T>;
    type MaskWords = [<Native as Memory>::AtomicUsize; WORDS];
    type IrqFlags = ();
    type MmData = Free;

    fn nr_cpu_ids(self) -> usize {
        CPUS
    }

    fn smp_processor_id(self) -> CpuId {
        CpuId::new(0)
    }

    fn cpu_online(self, cpu: CpuId) -> bool {
        cpu.get() == 0
    }

    fn local_irq_save(self, _: Label) {}

    unsafe fn local_irq_restore(self, (): ()) {}

    fn preempt_disable(self) {}

    unsafe fn preempt_enable(self) {}

    fn context(self) -> Context {
        Context { in_nmi: false, in_hardirq: false, in_softirq: false, preempt_disabled: false, irqs_disabled: false }
    }

    unsafe fn load_root(self, root: Root) {
        CR3.store(root.0, Relaxed);
    }

    fn read_root(self) -> Root {
        Root(CR3.load(Relaxed))
    }

    fn flush_tlb_local(self) {}

    fn kick(self, _: &CpuMask<Self>) {
        unreachable!("nobody else is online");
    }

    unsafe fn unmap_all(self, _: &MmCore<Self>) {}

    unsafe fn free_tables(self, _: &MmCore<Self>) {}

    unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
        // SAFETY: it is alive until the call below.
        unsafe { mm.as_ref() }.data().clone().run();
    }
}

// SAFETY: CPU 0 serves its own calls, and no other is online.
unsafe impl<const CPUS: usize> IpisInterrupt for Bare<CPUS> {}
// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl<const CPUS: usize> MaskCoversLazy for Bare<CPUS> {}

/// Nobody borrows what dies here, so there is nothing to do later.
impl<const CPUS: usize> Worker for Bare<CPUS> {
    fn queue_work(self) {}
}

impl<const CPUS: usize> Clock for Bare<CPUS> {
    fn jiffies(self) -> usize {
        0
    }

    fn queue_work_at(self, _: usize) {}
}

impl<const CPUS: usize> BroadcastTlb for Bare<CPUS> {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {}
}

/// A path that is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HotPath {
    /// From a user task to a kernel thread and back: a borrow, from its begin to its end.
    Borrow,
    /// From one kernel thread to another while the CPU borrows.
    KernelToKernel,
    /// From one user task to another and back.
    UserToUser,
    /// From a user task to a kernel thread and on to a user task of another mm.
    BorrowAndMoveOn,
    /// The last mmput of an mm that nobody borrows, allocation included.
    LastPut,
}

impl HotPath {
    /// All of them.
    pub const ALL: [HotPath; 5] =
        [HotPath::Borrow, HotPath::KernelToKernel, HotPath::UserToUser, HotPath::BorrowAndMoveOn, HotPath::LastPut];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            HotPath::Borrow => "user-kthread-user",
            HotPath::KernelToKernel => "kthread-kthread",
            HotPath::UserToUser => "user-user",
            HotPath::BorrowAndMoveOn => "user-kthread-other",
            HotPath::LastPut => "last-mmput",
        }
    }
}

/// A booted machine with what the paths need, under one strategy.
#[derive(Debug)]
pub struct Bench<const CPUS: usize, S: LazyTlb<Bare<CPUS>>> {
    machine: Machine<Bare<CPUS>, S>,
    users: [&'static Task<Bare<CPUS>>; 2],
    kthreads: [&'static Task<Bare<CPUS>>; 2],
}

impl<const CPUS: usize, S: LazyTlb<Bare<CPUS>>> Bench<CPUS, S> {
    /// Boots it.
    pub fn new(strategy: S) -> Self {
        let machine = Machine::boot(Bare::NEW, strategy);
        let users = [0xa000, 0xb000].map(|root| machine.user(machine.mm(root)));
        let kthreads = [machine.kthread(), machine.kthread()];
        machine.switch(machine.idle[0], users[0]);
        Bench { machine, users, kthreads }
    }

    /// Goes the path `rounds` times and says how long that took.
    pub fn run(&self, path: HotPath, rounds: u64) -> Duration {
        let Bench { machine, users: [user, other], kthreads: [kthread, second] } = self;
        if path == HotPath::KernelToKernel {
            machine.switch(user, kthread);
        }
        let started = Instant::now();
        for _ in 0..rounds {
            match path {
                HotPath::Borrow => {
                    machine.switch(user, kthread);
                    machine.switch(kthread, user);
                }
                HotPath::KernelToKernel => {
                    machine.switch(kthread, second);
                    machine.switch(second, kthread);
                }
                HotPath::UserToUser => {
                    machine.switch(user, other);
                    machine.switch(other, user);
                }
                HotPath::BorrowAndMoveOn => {
                    machine.switch(user, kthread);
                    machine.switch(kthread, other);
                    machine.switch(other, user);
                }
                HotPath::LastPut => drop(black_box(machine.mm(0xc000))),
            }
        }
        let time = started.elapsed();
        if path == HotPath::KernelToKernel {
            machine.switch(kthread, user);
        }
        time
    }
}

/// What is timed, without its types.
type Runner = Box<dyn Fn(HotPath, u64) -> Duration>;

/// Every strategy of the library on a machine of `CPUS` CPUs, chosen by type, the adapters, and one chosen at boot.
pub fn strategies<const CPUS: usize>() -> Vec<(&'static str, Runner)> {
    fn runner<const CPUS: usize, S: LazyTlb<Bare<CPUS>>>(strategy: S) -> Runner {
        let bench = Bench::<CPUS, S>::new(strategy);
        Box::new(move |path, rounds| bench.run(path, rounds))
    }
    vec![
        ("no-lazy", runner::<CPUS, _>(NoLazy)),
        ("refcount", runner::<CPUS, _>(Refcount)),
        ("refcount-deferred", runner::<CPUS, _>(RefcountDeferred)),
        ("refcount-per-cpu", runner::<CPUS, _>(RefcountPerCpu::new())),
        ("shootdown", runner::<CPUS, _>(Shootdown { debug_shoot_lazies: false })),
        ("shootdown-batched", runner::<CPUS, _>(ShootdownBatched::new())),
        ("users-only", runner::<CPUS, _>(UsersOnly)),
        ("lazyfix", runner::<CPUS, _>(LazyFix)),
        ("hazard-convert", runner::<CPUS, _>(HazardConvert::new())),
        ("hazard-ipi", runner::<CPUS, _>(HazardIpi::new())),
        ("hazard-ipi-unfenced", runner::<CPUS, _>(HazardIpi { fences: false })),
        ("hazard-deadline", runner::<CPUS, _>(HazardDeadline::new())),
        ("general-hazard", runner::<CPUS, _>(GeneralHazard::new())),
        ("epoch-qs", runner::<CPUS, _>(EpochQs::default())),
        ("epoch-pinned", runner::<CPUS, _>(EpochPinned::default())),
        ("crossbeam-epoch", runner::<CPUS, _>(CrossbeamEpoch::default())),
        ("arc-per-cpu", runner::<CPUS, _>(ArcPerCpu)),
        ("boot-time refcount", runner::<CPUS, _>(AnyLazyTlb::Refcount(Refcount))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_every_strategy_can_be_gone() {
        for (name, run) in strategies::<3>() {
            for path in HotPath::ALL {
                assert!(run(path, 3) > Duration::ZERO, "{name} {}", path.name());
            }
        }
    }
}
