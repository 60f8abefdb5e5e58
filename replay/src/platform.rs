//! [`Replay`]: one thread that is every CPU of the traced machine in turn, on words that count.
//!
//! A shared word knows which CPUs have a copy of it, as a cache line would: whoever reads one that another CPU has
//! written, or writes one that others have, pays a transfer. Each word stands for a line of its own.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use lazytlb_core::cpumask::{CpuId, CpuMask};
use lazytlb_core::memory::{At, AtomicInt, AtomicWord, Label, LocalWord, Memory, Ordering};
use lazytlb_core::mm::MmCore;
use lazytlb_core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange, IpiFlush, IpiUnlazy};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, PerCpu, Platform, Root, Warning, Worker};

/// The most CPUs that a trace can have.
pub const MOST_CPUS: usize = 1024;

/// What the code of a strategy has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Read-modify-writes of shared words.
    pub rmw: u64,
    /// Plain loads of shared words.
    pub loads: u64,
    /// Plain stores to shared words.
    pub stores: u64,
    /// Shared words that came from another CPU's cache.
    pub transfers: u64,
    /// Full fences.
    pub fences: u64,
    /// Calls to other CPUs.
    pub ipis: u64,
    /// CPUs that such calls interrupted.
    pub interrupted: u64,
    /// Page-table roots loaded.
    pub root_loads: u64,
    /// Address spaces whose last user is gone.
    pub died: u64,
    /// Address spaces that were freed.
    pub freed: u64,
    /// The most that had no users and were not freed, at one time.
    pub most_zombies: u64,
    /// How many are so now.
    zombies: u64,
    /// The sum over time of how many were so, in nanoseconds.
    zombie_ns: u128,
    /// Until when that sum goes.
    summed_until: u64,
    /// The longest time from the last user to the freeing, in nanoseconds.
    pub longest_reclaim_ns: u64,
    /// Times the library warned of a broken rule.
    pub warnings: u64,
}

/// What a dead address space holds on to: its struct and its root table (with the user half that x86 keeps beside it).
pub const ZOMBIE_BYTES: u64 = 10 << 10;

impl Counts {
    fn sum_up(&mut self, now: u64) {
        self.zombie_ns += u128::from(self.zombies) * u128::from(now.saturating_sub(self.summed_until));
        self.summed_until = now;
    }

    /// Nothing done yet; who has died and is not freed is still so.
    pub(crate) fn carried_on(&self) -> Counts {
        Counts { zombies: self.zombies, summed_until: self.summed_until, ..Counts::default() }
    }

    /// Adds what lives on at the end of the trace.
    pub(crate) fn end(&mut self, now: u64) {
        self.sum_up(now);
    }

    /// Memory that dead address spaces held, over time.
    pub fn zombie_byte_seconds(&self) -> f64 {
        self.zombie_ns as f64 * 1e-9 * ZOMBIE_BYTES as f64
    }

    /// The mean time from the last user to the freeing, in nanoseconds; of those that were freed or still wait.
    pub fn mean_reclaim_ns(&self) -> f64 {
        if self.died == 0 { 0.0 } else { self.zombie_ns as f64 / self.died as f64 }
    }
}

/// A strategy's machine without its type.
#[derive(Clone, Copy)]
pub(crate) struct Traced {
    /// The switch path, and what an interrupt runs with it.
    pub(crate) switcher: *const (),
    pub(crate) on_ipi: fn(*const ()),
    /// What the worker does with it, and when it was asked to come, at the earliest.
    pub(crate) collect: fn(*const ()),
    pub(crate) work_at: &'static Cell<Option<u64>>,
    /// The root register of each CPU.
    pub(crate) roots: &'static [Cell<Root>],
}

/// What all CPUs share.
pub(crate) struct Hardware {
    cpu: Cell<usize>,
    cpus: Cell<usize>,
    pub(crate) now: Cell<u64>,
    irqs_off: Cell<bool>,
    preempt_count: Cell<usize>,
    counts: RefCell<Counts>,
    /// The one whose strategy runs.
    pub(crate) machine: Cell<Option<Traced>>,
    /// The CPUs on which roots were loaded, while somebody wants to know.
    pub(crate) loads: RefCell<Vec<usize>>,
}

impl Hardware {
    fn machine(&self) -> Traced {
        self.machine.get().expect("a strategy runs")
    }
}

thread_local! {
    static HARDWARE: Hardware = const { Hardware {
        cpu: Cell::new(0),
        cpus: Cell::new(1),
        now: Cell::new(0),
        irqs_off: Cell::new(false),
        preempt_count: Cell::new(0),
        counts: RefCell::new(NOTHING),
        machine: Cell::new(None),
        loads: RefCell::new(Vec::new()),
    } };
}

const NOTHING: Counts = Counts {
    rmw: 0,
    loads: 0,
    stores: 0,
    transfers: 0,
    fences: 0,
    ipis: 0,
    interrupted: 0,
    root_loads: 0,
    died: 0,
    freed: 0,
    most_zombies: 0,
    zombies: 0,
    zombie_ns: 0,
    summed_until: 0,
    longest_reclaim_ns: 0,
    warnings: 0,
};

pub(crate) fn hardware<R>(f: impl FnOnce(&Hardware) -> R) -> R {
    HARDWARE.with(f)
}

#[inline]
fn count(f: impl FnOnce(&mut Counts)) {
    HARDWARE.with(|hardware| f(&mut hardware.counts.borrow_mut()));
}

/// Exchanges what was counted so far.
pub(crate) fn swap_counts(counts: Counts) -> Counts {
    HARDWARE.with(|hardware| hardware.counts.replace(counts))
}

/// Runs `f` as CPU `cpu`.
pub(crate) fn on_cpu<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
    let before = HARDWARE.with(|hardware| {
        hardware.cpus.set(hardware.cpus.get().max(cpu + 1));
        hardware.cpu.replace(cpu)
    });
    let result = f();
    HARDWARE.with(|hardware| hardware.cpu.set(before));
    result
}

/// Forgets the machine of an earlier trace.
pub(crate) fn power_on() {
    HARDWARE.with(|hardware| {
        hardware.cpu.set(0);
        hardware.cpus.set(1);
        hardware.now.set(0);
        hardware.loads.borrow_mut().clear();
    });
}

/// A shared word with the CPUs that have a copy of it; CPUs that are 64 apart count as one.
pub struct Counted<T> {
    value: Cell<T>,
    copies: Cell<u64>,
}

impl<T: Copy> Counted<T> {
    #[inline]
    fn me() -> u64 {
        1 << (HARDWARE.with(|hardware| hardware.cpu.get()) % 64)
    }

    #[inline]
    fn read(&self) -> T {
        let me = Self::me();
        if self.copies.get() & me == 0 {
            self.copies.set(self.copies.get() | me);
            count(|counts| counts.transfers += 1);
        }
        self.value.get()
    }

    #[inline]
    fn write(&self, value: T) {
        let me = Self::me();
        if self.copies.replace(me) != me {
            count(|counts| counts.transfers += 1);
        }
        self.value.set(value);
    }

    #[inline]
    fn rmw(&self, apply: impl FnOnce(T) -> Option<T>) -> T {
        count(|counts| counts.rmw += 1);
        let old = self.value.get();
        self.write(apply(old).unwrap_or(old));
        old
    }
}

impl<T: Copy + PartialEq> AtomicWord<T> for Counted<T> {
    fn new(value: T) -> Self {
        Counted { value: Cell::new(value), copies: Cell::new(Self::me()) }
    }
    #[inline]
    fn load(&self, _: impl Into<At>) -> T {
        count(|counts| counts.loads += 1);
        self.read()
    }
    #[inline]
    fn store(&self, value: T, _: impl Into<At>) {
        count(|counts| counts.stores += 1);
        self.write(value);
    }
    #[inline]
    fn swap(&self, value: T, _: impl Into<At>) -> T {
        self.rmw(|_| Some(value))
    }
    #[inline]
    fn compare_exchange(&self, current: T, new: T, _: impl Into<At>, _: Ordering) -> Result<T, T> {
        let old = self.rmw(|old| (old == current).then_some(new));
        if old == current { Ok(old) } else { Err(old) }
    }
    #[inline]
    fn swap_full(&self, value: T, _: Label) -> T {
        self.rmw(|_| Some(value))
    }
    #[inline]
    fn compare_exchange_full(&self, current: T, new: T, _: Label) -> Result<T, T> {
        let old = self.rmw(|old| (old == current).then_some(new));
        if old == current { Ok(old) } else { Err(old) }
    }
}

macro_rules! fetch {
    ($($plain:ident $full:ident $apply:expr),*) => {
        impl AtomicInt for Counted<usize> {
            $(
                #[inline]
                fn $plain(&self, value: usize, _: impl Into<At>) -> usize {
                    let apply: fn(usize, usize) -> usize = $apply;
                    self.rmw(|old| Some(apply(old, value)))
                }
                #[inline]
                fn $full(&self, value: usize, _: Label) -> usize {
                    let apply: fn(usize, usize) -> usize = $apply;
                    self.rmw(|old| Some(apply(old, value)))
                }
            )*
        }
    };
}

fetch!(
    fetch_add fetch_add_full usize::wrapping_add,
    fetch_sub fetch_sub_full usize::wrapping_sub,
    fetch_or fetch_or_full |old, value| old | value,
    fetch_and fetch_and_full |old, value| old & value
);

/// A word of one CPU or task, which costs nothing.
pub struct Own<T>(Cell<T>);

impl<T> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted { .. }")
    }
}

impl<T> fmt::Debug for Own<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own { .. }")
    }
}

impl<T: Copy> LocalWord<T> for Own<T> {
    fn new(value: T) -> Self {
        Own(Cell::new(value))
    }
    #[inline]
    fn get(&self) -> T {
        self.0.get()
    }
    #[inline]
    fn set(&self, value: T) {
        self.0.set(value);
    }
}

/// The platform, on the flush rules `Rules`.
#[derive(Debug)]
pub struct Replay<Rules>(PhantomData<fn() -> Rules>);

impl<Rules> Replay<Rules> {
    /// The handle.
    pub const NEW: Self = Replay(PhantomData);
}

impl<Rules> Clone for Replay<Rules> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Rules> Copy for Replay<Rules> {}

impl<Rules> Memory for Replay<Rules> {
    type AtomicUsize = Counted<usize>;
    type AtomicPtr<T> = Counted<*mut T>;
    type LocalUsize = Own<usize>;
    type LocalPtr<T> = Own<*mut T>;

    fn fence(self, at: impl Into<At>) {
        if at.into().order == Ordering::SeqCst {
            count(|counts| counts.fences += 1);
        }
    }

    fn spin_hint(self) {
        unreachable!("interrupts are served at once: nobody waits");
    }
}

/// Per-CPU storage for as many CPUs as there can be.
#[derive(Debug)]
pub struct Slots<T>(Vec<T>);

impl<T> PerCpu<T> for Slots<T> {
    fn from_fn(_: usize, init: impl FnMut(CpuId) -> T) -> Self {
        Slots((0..MOST_CPUS).map(CpuId::new).map(init).collect())
    }

    #[inline]
    fn get(&self, cpu: CpuId) -> &T {
        &self.0[cpu.get()]
    }
}

/// What the replay keeps in each mm: how to free it, and since when it has no users.
#[derive(Debug)]
pub struct Life {
    pub(crate) allocation: Cell<*mut ()>,
    pub(crate) free: fn(*mut ()),
    dead_since: Cell<u64>,
}

impl Life {
    pub(crate) fn new(free: fn(*mut ())) -> Life {
        Life { allocation: Cell::new(core::ptr::null_mut()), free, dead_since: Cell::new(0) }
    }

    fn dies(&self) {
        let now = hardware(|hardware| hardware.now.get());
        self.dead_since.set(now);
        count(|counts| {
            counts.sum_up(now);
            counts.died += 1;
            counts.zombies += 1;
            counts.most_zombies = counts.most_zombies.max(counts.zombies);
        });
    }

    fn is_freed(&self) {
        let now = hardware(|hardware| hardware.now.get());
        count(|counts| {
            counts.sum_up(now);
            counts.freed += 1;
            counts.zombies -= 1;
            counts.longest_reclaim_ns = counts.longest_reclaim_ns.max(now.saturating_sub(self.dead_since.get()));
        });
    }
}

/// As many mask words as [`MOST_CPUS`] need.
const WORDS: usize = MOST_CPUS / usize::BITS as usize;

/// A tick of the clock: a millisecond, as Linux has it with `HZ=1000`.
const JIFFY_NS: u64 = 1_000_000;

macro_rules! platform {
    ($rules:ty) => {
        // SAFETY: one thread is one CPU at a time, interrupts run at once and to their end; free_mm drops the box that
        // the mm is in.
        unsafe impl Platform for Replay<$rules> {
            type Arch = $rules;
            type PerCpu<T> = Slots<T>;
            type MaskWords = [Counted<usize>; WORDS];
            type IrqFlags = bool;
            type MmData = Life;

            /// The CPUs that the trace has shown so far: the others run nothing.
            #[inline]
            fn nr_cpu_ids(self) -> usize {
                hardware(|hardware| hardware.cpus.get())
            }

            #[inline]
            fn smp_processor_id(self) -> CpuId {
                CpuId::new(hardware(|hardware| hardware.cpu.get()))
            }

            fn cpu_online(self, _: CpuId) -> bool {
                true
            }

            #[inline]
            fn local_irq_save(self, _: Label) -> bool {
                hardware(|hardware| hardware.irqs_off.replace(true))
            }

            #[inline]
            unsafe fn local_irq_restore(self, flags: bool) {
                hardware(|hardware| hardware.irqs_off.set(flags));
            }

            fn preempt_disable(self) {
                hardware(|hardware| hardware.preempt_count.set(hardware.preempt_count.get() + 1));
            }

            unsafe fn preempt_enable(self) {
                hardware(|hardware| hardware.preempt_count.set(hardware.preempt_count.get() - 1));
            }

            fn context(self) -> Context {
                hardware(|hardware| Context {
                    in_nmi: false,
                    in_hardirq: false,
                    in_softirq: false,
                    preempt_disabled: hardware.preempt_count.get() > 0,
                    irqs_disabled: hardware.irqs_off.get(),
                })
            }

            unsafe fn load_root(self, root: Root) {
                count(|counts| counts.root_loads += 1);
                hardware(|hardware| {
                    let cpu = hardware.cpu.get();
                    hardware.loads.borrow_mut().push(cpu);
                    hardware.machine().roots[cpu].set(root);
                });
            }

            fn read_root(self) -> Root {
                hardware(|hardware| hardware.machine().roots[hardware.cpu.get()].get())
            }

            fn flush_tlb_local(self) {}

            fn kick(self, targets: &CpuMask<Self>) {
                count(|counts| counts.ipis += 1);
                let machine = hardware(Hardware::machine);
                for target in targets.cpus(Ordering::Relaxed) {
                    count(|counts| counts.interrupted += 1);
                    on_cpu(target.get(), || {
                        let flags = self.local_irq_save(Label::NONE);
                        (machine.on_ipi)(machine.switcher);
                        // SAFETY: saved above.
                        unsafe { self.local_irq_restore(flags) };
                    });
                }
            }

            unsafe fn unmap_all(self, mm: &MmCore<Self>) {
                mm.data().dies();
            }

            unsafe fn free_tables(self, _: &MmCore<Self>) {}

            unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
                // SAFETY: it is alive until the last line.
                let life = unsafe { mm.as_ref() }.data();
                life.is_freed();
                (life.free)(life.allocation.get());
            }

            fn warn(self, _: Warning) {
                count(|counts| counts.warnings += 1);
            }
        }

        impl Worker for Replay<$rules> {
            fn queue_work(self) {
                hardware(|hardware| hardware.machine().work_at.set(Some(hardware.now.get())));
            }
        }

        impl Clock for Replay<$rules> {
            fn jiffies(self) -> usize {
                hardware(|hardware| hardware.now.get() / JIFFY_NS) as usize
            }

            fn queue_work_at(self, at: usize) {
                hardware(|hardware| {
                    let (at, work_at) = (at as u64 * JIFFY_NS, hardware.machine().work_at);
                    work_at.set(Some(work_at.get().map_or(at, |before| before.min(at))));
                });
            }
        }

        // SAFETY: a kick runs the handler.
        unsafe impl IpisInterrupt for Replay<$rules> {}
    };
}

platform!(IpiFlush);
platform!(IpiUnlazy);
platform!(BroadcastFlush);

// SAFETY: IpiUnlazy takes a CPU out of a mask, and ends its borrow in the flush, where it takes active_mm off the mm.
unsafe impl MaskCoversLazy for Replay<IpiUnlazy> {
    const FLUSH_ENDS_BORROWS: bool = true;
}

// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for Replay<BroadcastFlush> {}

// SAFETY: not true, and harmless here: nobody but the switch path itself looks at a borrowed mm, and it only compares it.
// The replay counts what a strategy would cost on a machine even where it would not be safe.
unsafe impl MaskCoversLazy for Replay<IpiFlush> {}

impl BroadcastTlb for Replay<BroadcastFlush> {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {}
}

/// Forgets the roots that were loaded until now.
pub(crate) fn forget_loads() {
    hardware(|hardware| hardware.loads.borrow_mut().clear());
}

/// Whether a root was loaded on a CPU since they were forgotten.
pub(crate) fn has_loaded(cpu: u32) -> bool {
    hardware(|hardware| hardware.loads.borrow().contains(&(cpu as usize)))
}

/// Calls `f` with each CPU on which a root was loaded since they were forgotten.
pub(crate) fn each_load(f: impl FnMut(usize)) {
    hardware(|hardware| hardware.loads.borrow().iter().copied().for_each(f));
}
