//! Lazy MMU mode on native memory, to be timed: its hot calls beside counters by hand, and its back ends on hardware that costs
//! nothing, or what a thing of the same kind costs on this host.

use core::cell::Cell;
use core::hint::black_box;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::*, fence};
use core::time::Duration;
use std::time::Instant;

use lazytlb::lazy_mmu::LazyMmuState;
use lazytlb::lazy_mmu::backends::arm64::Arm64Kernel;
use lazytlb::lazy_mmu::backends::powerpc::{HashBatch, HashKernel};
use lazytlb::lazy_mmu::backends::s390::{PteCache, PteRange, S390Kernel};
use lazytlb::lazy_mmu::backends::sparc64::{SparcKernel, TlbBatch};
use lazytlb::lazy_mmu::backends::xen::{Operation, X5, XenCpu, XenKernel};
use lazytlb::lazy_mmu::backends::{Arm64, MmuKernel, PowerpcHash, Pte, PteAccess, S390, Sparc64, Xen};
use lazytlb::lazy_mmu::state::NativeCounter;
use lazytlb_core::memory::{At, LocalWord, Memory};
use lazytlb_core::native::{Local, Native};

/// How many entries a batch of powerpc's and sparc64's holds.
const BATCH: usize = 192;
/// How many hypercalls Xen's queue holds.
const QUEUE: usize = 32;
/// How many entries a table has, and s390's cache.
pub const TABLE: usize = 256;

/// Preemption and interrupts, as Linux counts them: interrupts above the lowest byte.
static PREEMPT_COUNT: AtomicU32 = AtomicU32::new(0);
const IN_INTERRUPT: u32 = 0x00ff_ff00;

type Word = Local<AtomicUsize>;

const fn word(value: usize) -> Word {
    Local::from_raw(AtomicUsize::new(value))
}

static CURRENT: LazyMmuState = LazyMmuState::new();
static PENDING: Word = word(0);
static HASH: HashBatch<BareMmu, BATCH> =
    HashBatch::from_parts(word(0), word(0), word(0), [const { [const { AtomicUsize::new(0) }; 2] }; BATCH]);
static TLB: TlbBatch<BareMmu, BATCH> =
    TlbBatch::from_parts(word(0), word(0), word(0), [const { [const { AtomicUsize::new(0) }; 1] }; BATCH]);
// SAFETY: all are zero and null.
static XEN: XenCpu<BareMmu, QUEUE> = unsafe {
    XenCpu::from_parts(
        word(0),
        word(0),
        word(0),
        [const { Local::from_raw(AtomicPtr::new(null_mut())) }; QUEUE],
        [const { word(0) }; QUEUE],
    )
};
// SAFETY: all are zero and null, and the slots hold what no entry does.
static CACHE: PteCache<BareMmu, TABLE> = unsafe {
    PteCache::from_parts(
        word(0),
        word(0),
        word(0),
        word(0),
        Local::from_raw(AtomicPtr::new(null_mut())),
        word(0),
        word(0),
        [const { word(usize::MAX) }; TABLE],
    )
};
static ENTRIES: [AtomicUsize; TABLE] = [const { AtomicUsize::new(0) }; TABLE];
/// Whether hardware costs what a thing of the same kind costs here.
static STAND_INS: AtomicBool = AtomicBool::new(false);

/// One CPU whose one task is in process context.
#[derive(Clone, Copy, Debug)]
pub struct BareMmu;

impl BareMmu {
    fn pte(self, addr: usize) -> Pte<BareMmu> {
        Pte { mm: 1, addr, ptep: NonNull::from(&ENTRIES[addr]) }
    }

    /// A hypercall is a call of the system.
    fn hypercall(self) {
        if STAND_INS.load(Relaxed) {
            black_box(std::os::unix::process::parent_id());
        }
    }
}

impl Memory for BareMmu {
    type AtomicUsize = AtomicUsize;
    type AtomicPtr<T> = AtomicPtr<T>;
    type LocalUsize = Word;
    type LocalPtr<T> = Local<AtomicPtr<T>>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }
    fn spin_hint(self) {
        panic!("nobody else runs: this wait would never end");
    }
}

impl MmuKernel for BareMmu {
    #[inline]
    fn in_interrupt(self) -> bool {
        PREEMPT_COUNT.load(Relaxed) & IN_INTERRUPT != 0
    }
    #[inline]
    fn is_lazy_mmu_mode_active(self) -> bool {
        !self.in_interrupt() && CURRENT.task_lazy_mmu_mode_active()
    }
    fn preempt_disable(self) {
        PREEMPT_COUNT.store(PREEMPT_COUNT.load(Relaxed) + 1, Relaxed);
    }
    fn preempt_enable(self) {
        PREEMPT_COUNT.store(PREEMPT_COUNT.load(Relaxed) - 1, Relaxed);
    }
    fn pte_present(value: usize) -> bool {
        value != 0
    }
    fn pte_mkold(value: usize) -> usize {
        value
    }
    fn pte_wrprotect(value: usize) -> usize {
        value
    }
}

impl Arm64Kernel for BareMmu {
    #[inline]
    fn pending(&self) -> &Word {
        &PENDING
    }
    /// A pair of barriers is one full fence.
    #[inline]
    fn emit_pte_barriers(self) {
        if STAND_INS.load(Relaxed) {
            fence(SeqCst);
        }
    }
    fn is_valid_kernel_pte(value: usize) -> bool {
        value != 0
    }
}

impl HashKernel<BATCH> for BareMmu {
    fn radix_enabled(self) -> bool {
        false
    }
    fn hash_batch(&self) -> &HashBatch<Self, BATCH> {
        &HASH
    }
    fn is_hashed(value: usize) -> bool {
        value != 0
    }
    fn unhashed(value: usize) -> usize {
        value
    }
    fn flush_hash_page(self, _mm: usize, _kind: usize, entry: [usize; 2]) {
        black_box(entry);
    }
    fn flush_hash_range(self, batch: &HashBatch<Self, BATCH>) {
        black_box(batch.entries(batch.len()).fold(0, |sum, entry| sum + entry[0]));
    }
}

impl SparcKernel<BATCH> for BareMmu {
    fn tlb_batch(&self) -> &TlbBatch<Self, BATCH> {
        &TLB
    }
    fn is_exec(_value: usize) -> bool {
        false
    }
    fn has_context(self, _mm: usize) -> bool {
        true
    }
    fn flush_tsb(self, _mm: usize, addrs: impl Iterator<Item = usize>) {
        black_box(addrs.sum::<usize>());
    }
    fn global_flush_tlb_page(self, _mm: usize, addr: usize) {
        black_box(addr);
    }
    fn smp_flush_tlb_pending(self, batch: &TlbBatch<Self, BATCH>) {
        black_box(batch.entries(batch.len()).fold(0, |sum, entry| sum + entry[0]));
    }
}

impl XenKernel<QUEUE> for BareMmu {
    type IrqFlags = ();

    fn xen_cpu(&self) -> &XenCpu<Self, QUEUE> {
        &XEN
    }
    fn local_irq_save(self) {}
    fn local_irq_restore(self, (): ()) {}
    unsafe fn mmu_update(self, ptep: NonNull<AtomicUsize>, value: usize) {
        self.hypercall();
        // SAFETY: the caller's entry.
        unsafe { ptep.as_ref() }.store(value, Relaxed);
    }
    unsafe fn multicall(self, queue: &XenCpu<Self, QUEUE>) {
        self.hypercall();
        for operation in queue.operations() {
            // No bits are set here, so none are there to be kept.
            if let Operation::Update(ptep, value) | Operation::UpdatePreservingBits(ptep, value) = operation {
                // SAFETY: the caller's entries.
                unsafe { ptep.as_ref() }.store(value, Relaxed);
            }
        }
    }
}

impl S390Kernel<TABLE> for BareMmu {
    const PAGE_SIZE: usize = 1;
    const PTE_NEVER: usize = usize::MAX;

    fn pte_cache(&self) -> &PteCache<Self, TABLE> {
        &CACHE
    }
    unsafe fn ipte_range(self, first: Pte<Self>, count: usize) {
        for addr in first.addr..first.addr + count {
            // SAFETY: its own table.
            unsafe { self.pte(addr).store(0) };
        }
    }
}

/// How many tasks take turns in [`nested_pair`].
pub const TASKS: usize = 8;

/// A nested section, begun and ended, so many times, inside of another; the architecture is arm64 with nothing pending. `tasks` tasks
/// take turns. With one each pair waits for the store of the one before, which no kernel's code does.
///
/// # Panics
/// If there are to be more than [`TASKS`].
pub fn nested_pair(tasks: usize, rounds: u64) -> Duration {
    nested_pair_of::<NativeCounter>(tasks, rounds)
}

/// As [`nested_pair`], with counters that are cells.
///
/// # Panics
/// As [`nested_pair`].
pub fn nested_pair_in_cells(tasks: usize, rounds: u64) -> Duration {
    nested_pair_of::<Cell<u8>>(tasks, rounds)
}

fn nested_pair_of<W: LocalWord<u8>>(tasks: usize, rounds: u64) -> Duration {
    let states: [LazyMmuState<W>; TASKS] = Default::default();
    let enable = |state: &LazyMmuState<W>| state.lazy_mmu_mode_enable(&Arm64(BareMmu));
    let disable = |state: &LazyMmuState<W>| state.lazy_mmu_mode_disable(&Arm64(BareMmu));
    pairs(&states[..tasks], rounds, enable, disable)
}

/// As [`nested_pair`], with [`ByHand`].
///
/// # Panics
/// As [`nested_pair`].
pub fn nested_pair_by_hand(tasks: usize, rounds: u64) -> Duration {
    let states: [ByHand; TASKS] = Default::default();
    pairs(&states[..tasks], rounds, ByHand::enable, ByHand::disable)
}

#[inline(always)]
fn pairs<T>(tasks: &[T], rounds: u64, enable: impl Fn(&T), disable: impl Fn(&T)) -> Duration {
    tasks.iter().for_each(&enable);
    let start = Instant::now();
    for _ in 0..rounds / tasks.len() as u64 {
        for task in tasks {
            enable(task);
            anybody_may_look(task);
            disable(task);
            anybody_may_look(task);
        }
    }
    start.elapsed()
}

/// The compiler must have stored what it would keep in registers, as before a call of anything else. No instruction: `black_box`
/// would send the pointer through memory.
#[inline(always)]
fn anybody_may_look<T>(task: &T) {
    // SAFETY: it does nothing.
    unsafe { core::arch::asm!("/* {0} */", in(reg) core::ptr::from_ref(task), options(nostack, preserves_flags)) };
}

/// The same counters, by hand.
#[derive(Debug, Default)]
pub struct ByHand {
    enable_count: Cell<u8>,
    pause_count: Cell<u8>,
}

impl ByHand {
    /// A section begins.
    #[inline]
    pub fn enable(&self) {
        if PREEMPT_COUNT.load(Relaxed) & IN_INTERRUPT != 0 || self.pause_count.get() > 0 {
            return;
        }
        // arm64 does nothing at the first one.
        self.enable_count.set(self.enable_count.get().wrapping_add(1));
    }

    /// It ends: barriers, if any are due.
    #[inline]
    pub fn disable(&self) {
        if PREEMPT_COUNT.load(Relaxed) & IN_INTERRUPT != 0 || self.pause_count.get() > 0 {
            return;
        }
        self.enable_count.set(self.enable_count.get().wrapping_sub(1));
        // Whether it was the last one or not.
        if PENDING.get() != 0 {
            PENDING.set(0);
            BareMmu.emit_pte_barriers();
        }
    }
}

/// A back end, to be timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackEnd {
    /// [`Arm64`].
    Arm64,
    /// [`PowerpcHash`].
    PowerpcHash,
    /// [`Sparc64`].
    Sparc64,
    /// [`Xen`], in its last form.
    Xen,
    /// [`S390`], with the entries named.
    S390,
}

impl BackEnd {
    /// All of them.
    pub const ALL: [BackEnd; 5] = [BackEnd::Arm64, BackEnd::PowerpcHash, BackEnd::Sparc64, BackEnd::Xen, BackEnd::S390];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            BackEnd::Arm64 => "arm64",
            BackEnd::PowerpcHash => "powerpc-hash",
            BackEnd::Sparc64 => "sparc64",
            BackEnd::Xen => "xen-x5",
            BackEnd::S390 => "s390",
        }
    }

    /// Whether the host has something of the kind that its hardware is asked for.
    pub fn has_stand_in(self) -> bool {
        matches!(self, BackEnd::Arm64 | BackEnd::Xen)
    }

    /// Changes so many entries, in a section or one by one, so many times. With stand-ins hardware costs what a thing of the same
    /// kind costs here: a full fence for a pair of barriers, a call of the system for a hypercall.
    ///
    /// # Panics
    /// If there are not so many entries.
    pub fn change(self, entries: usize, in_section: bool, stand_ins: bool, rounds: u64) -> Duration {
        assert!(entries <= TABLE);
        STAND_INS.store(stand_ins, Relaxed);
        let took = match self {
            BackEnd::Arm64 => change(&Arm64(BareMmu), entries, in_section.then_some(()), rounds),
            BackEnd::PowerpcHash => {
                change(&PowerpcHash::<_, BATCH>(BareMmu), entries, in_section.then_some(()), rounds)
            }
            BackEnd::Sparc64 => change(&Sparc64::<_, BATCH>(BareMmu), entries, in_section.then_some(()), rounds),
            BackEnd::Xen => change(&Xen::<_, X5, QUEUE>::new(BareMmu), entries, in_section.then_some(()), rounds),
            BackEnd::S390 => {
                let Pte { mm, addr, ptep } = BareMmu.pte(0);
                // SAFETY: they are a static table.
                let named = unsafe { PteRange::new(mm, addr..entries, ptep) };
                change(&S390::<_, TABLE>(BareMmu), entries, in_section.then_some(named), rounds)
            }
        };
        STAND_INS.store(false, Relaxed);
        took
    }
}

fn change<B: PteAccess<Kernel = BareMmu>>(arch: &B, entries: usize, section: Option<B::Ptes>, rounds: u64) -> Duration {
    let start = Instant::now();
    for round in 0..rounds {
        if let Some(named) = section {
            CURRENT.lazy_mmu_mode_enable_with_ptes(arch, named);
        }
        for addr in 0..entries {
            // SAFETY: the entries are a static's.
            unsafe { arch.set_pte(BareMmu.pte(addr), 1 + (round & 1) as usize) };
        }
        if section.is_some() {
            CURRENT.lazy_mmu_mode_disable(arch);
        }
    }
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_runs_and_leaves_nothing_behind() {
        nested_pair(1, 3);
        nested_pair_in_cells(2, 4);
        nested_pair_by_hand(TASKS, 16);
        for back_end in BackEnd::ALL {
            for (entries, in_section) in [(1, false), (1, true), (TABLE, false), (TABLE, true)] {
                back_end.change(entries, in_section, true, 2);
                assert!(ENTRIES[..entries].iter().all(|entry| entry.load(Relaxed) == 2), "{}", back_end.name());
            }
        }
        assert_eq!((CURRENT.enable_count(), PREEMPT_COUNT.load(Relaxed)), (0, 0));
        assert!(HASH.is_empty() && TLB.is_empty() && XEN.is_empty() && CACHE.is_empty());
    }
}
