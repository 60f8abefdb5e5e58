//! `MmSwitch`: what lies between the switch path and the MMU. Architectures differ here.
//!
//! It alone decides when the MMU really moves and what a TLB flush does to a CPU that holds an mm lazily, and it alone
//! writes `mm_cpumask`. The hardware may therefore be on another root than `active_mm` names: x86's flush of freed
//! tables moves a lazy CPU's MMU to `init_mm` and leaves the pointer alone. *Hardware liveness and pointer liveness
//! are two properties*; a strategy answers for the second, the flush rules decide what the first one needs.
//!
//! Three simple rules are here, each an architecture's rule cut down to one idea: what a flush does to a lazy CPU. The rules
//! that know of cached translations and their tags (x86 with generations, arm64, powerpc) are in `lazytlb-shootdown`. A
//! kernel may bring its own.

use core::fmt;

use crate::cpumask::CpuId;
use crate::memory::{Label, Labelled, LocalWord, Ordering::*};
use crate::mm::{MmCore, MmPtr, Slot};
use crate::platform::{IrqsOff, Platform};

/// What is flushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FlushRange {
    /// Everything of the mm.
    All,
    /// These user addresses.
    Addresses(core::ops::Range<usize>),
}

/// The architecture's part of a switch and of a flush.
pub trait MmSwitch<P: Platform>: Sized {
    /// State for each CPU.
    type CpuState: Slot;
    /// State in each mm.
    type MmState: Slot;

    /// Whether [`switch_mm_irqs_off`](Self::switch_mm_irqs_off) to another mm is a full barrier, as membarrier wants
    /// between two user tasks. If not, the switch path adds one.
    const SWITCH_MM_IS_BARRIER: bool;

    /// Puts the MMU on `next`. `prev` is the mm the CPU leaves, by pointer only: it may be gone.
    ///
    /// Context: interrupts off.
    ///
    /// # Safety
    /// Called by the switch path of the machine. `next` is alive, and stays so until the CPU is put on another mm.
    unsafe fn switch_mm_irqs_off(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, prev: MmPtr<P>, next: &MmCore<P>);

    /// The CPU goes on with `mm` loaded but will not use its user addresses: a hint. May be called several times.
    ///
    /// Context: interrupts off. `mm` may be gone.
    fn enter_lazy_tlb(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>);

    /// Makes sure that no CPU uses a translation of `range` that is older than this call; with `tables_freed`, that
    /// no CPU's hardware can reach the page tables that the caller has unhooked and will free.
    ///
    /// Context: interrupts on, may wait for other CPUs. The caller has written the page tables; the order against
    /// reading `mm_cpumask` is made inside.
    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, range: FlushRange, tables_freed: bool);

    /// The flush interrupt of `mm` has reached this CPU.
    ///
    /// Context: interrupts off, in the interrupt.
    ///
    /// # Safety
    /// Called by the switch path of the machine. `mm` is alive: the flusher waits.
    unsafe fn flush_ipi(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>, tables_freed: bool);

    /// The CPU is on `init_mm` for good and about to go offline.
    ///
    /// Context: interrupts off, on that CPU.
    fn cpu_going_down(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>) {
        let _ = (host, irqs_off);
    }

    /// The mm is about to be freed: what it has of what all mms share, a tag say, goes back (Linux `destroy_context`).
    ///
    /// Context: that of [`Platform::free_mm`]. No CPU has `mm` loaded or comes to load it.
    fn destroy_context(host: &impl ArchHost<P>, mm: &MmCore<P>) {
        let _ = (host, mm);
    }
}

/// What the switch path offers an architecture.
pub trait ArchHost<P: Platform> {
    /// The platform.
    fn platform(&self) -> P;

    /// The architecture's state for `cpu`.
    fn arch_state(&self, cpu: CpuId) -> &<P::Arch as MmSwitch<P>>::CpuState;

    /// The kernel's own address space.
    fn init_mm(&self) -> &MmCore<P>;

    /// Calls [`MmSwitch::flush_ipi`] on the online CPUs of `mm_cpumask(mm)`, on the calling one directly, and waits.
    ///
    /// Context: interrupts on.
    fn flush_cpus(&self, mm: &MmCore<P>, tables_freed: bool);

    /// As [`flush_cpus`](Self::flush_cpus), but only on those CPUs of the mask for which `is_target` holds.
    ///
    /// `is_target` is asked once for each CPU of the mask, the calling one last; it only reads. Preemption is off from the
    /// first question to the last call. Context: interrupts on.
    fn flush_cpus_if(&self, mm: &MmCore<P>, tables_freed: bool, is_target: impl Fn(CpuId) -> bool);

    /// Ends this CPU's borrow, pointer and MMU, if it borrows (Lutomirski's `unlazy_mm_irqs_off`). For a flush that
    /// wants lazy CPUs gone altogether.
    ///
    /// Context: interrupts off.
    fn unlazy_mm_irqs_off(&self, irqs_off: &IrqsOff<'_, P>);
}

/// Orders the flusher's page-table writes before its look at `mm_cpumask` (pair L8 with [`MASK_SET`]).
pub const FLUSH: Label = Label::new("mm_switch.flush");
/// A CPU enters `mm_cpumask` before it loads the root. Full barrier: either a flusher sees the bit, or the walks that
/// start with the load see the flusher's page-table writes (pair L8; Linux commit 71b3c126e611, CVE-2016-2069).
pub const MASK_SET: Label = Label::new("mm_switch.mask_set");
/// A CPU leaves `mm_cpumask` after its MMU has left.
pub const MASK_CLEAR: Label = Label::new("mm_switch.mask_clear");

/// x86's rule: a flush interrupts the CPUs of `mm_cpumask`, and a lazy one among them leaves for `init_mm`.
///
/// * `mm_cpumask` has a CPU's bit from before it loads the root until after its MMU has left. So the bit is clear while
///   `active_mm` of a lazy CPU still names the mm that its MMU was moved off: the mask does *not* cover `active_mm`.
/// * The MMU is tracked in `loaded_mm`, and a switch trusts that, not the scheduler's `prev`.
/// * Coming back from lazy mode to the same mm costs nothing, because no flush skips a lazy CPU. (Linux since 4.15
///   skips lazy CPUs when no tables are freed and pays with a generation compare on return; `X86_6_12` of
///   `lazytlb-shootdown` does so.)
///
/// Source: arch/x86/mm/tlb.c, `leave_mm`, as of Linux 6.12, without the generations.
pub type IpiFlush = IpiRule<false>;

/// [`IpiFlush`] with a handler that ends the borrow as a whole: it takes the MMU and `active_mm` off the mm together.
///
/// So `mm_cpumask` covers `active_mm`, and the flush that every last mmput needs anyway leaves no borrower behind.
///
/// Source: what Torvalds and Lutomirski agreed on in January 2022 in the thread of "sched: Use lightweight hazard pointers
/// to grab lazy mms"; Zijlstra's tree had it as `MMU_LAZY_TLB_IMPLICIT_SHOOTDOWN`. Not merged.
pub type IpiUnlazy = IpiRule<true>;

/// [`IpiFlush`] and [`IpiUnlazy`]: what a flush of an mm does to a lazy CPU's `active_mm` is all they differ in.
#[derive(Clone, Copy, Debug)]
pub struct IpiRule<const UNLAZY: bool>;

/// [`IpiRule`]'s state for a CPU.
pub struct Loaded<P: Platform> {
    /// What the MMU is on; null before the first switch.
    loaded_mm: P::LocalPtr<MmCore<P>>,
    /// Whether the CPU holds it lazily.
    is_lazy: P::LocalUsize,
}

impl<P: Platform> Loaded<P> {
    /// From ready words, null and zero; `const`, for statics.
    pub const fn from_parts(loaded_mm: P::LocalPtr<MmCore<P>>, is_lazy: P::LocalUsize) -> Self {
        Loaded { loaded_mm, is_lazy }
    }
}

impl<P: Platform> Slot for Loaded<P> {
    fn new() -> Self {
        Loaded { loaded_mm: LocalWord::new(core::ptr::null_mut()), is_lazy: LocalWord::new(0) }
    }

    fn reinit(&self) {
        self.loaded_mm.set(core::ptr::null_mut());
        self.is_lazy.set(0);
    }
}

impl<P: Platform> fmt::Debug for Loaded<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loaded { .. }")
    }
}

impl<P: Platform<Arch = Self>, const UNLAZY: bool> MmSwitch<P> for IpiRule<UNLAZY> {
    type CpuState = Loaded<P>;
    type MmState = ();

    /// The mask's RMW, and on real x86 the CR3 write.
    const SWITCH_MM_IS_BARRIER: bool = true;

    unsafe fn switch_mm_irqs_off(
        host: &impl ArchHost<P>,
        irqs_off: &IrqsOff<'_, P>,
        _prev: MmPtr<P>,
        next: &MmCore<P>,
    ) {
        let cpu = irqs_off.cpu();
        let this = host.arch_state(cpu);
        let real_prev = MmPtr::new(this.loaded_mm.get());
        let next_ptr = MmPtr::from(next);
        this.is_lazy.set(0);
        if real_prev == Some(next_ptr) {
            return;
        }
        let init_mm = MmPtr::from(host.init_mm());
        // init_mm has no mask: nothing is ever flushed for it alone, and its line would be the most contended of all.
        if next_ptr != init_mm {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
        }
        // SAFETY: `next` lives until the CPU leaves it, and its root with it.
        unsafe { irqs_off.platform().load_root(next.root()) };
        this.loaded_mm.set(next_ptr.as_ptr());
        if let Some(prev) = real_prev.filter(|&prev| prev != init_mm) {
            // SAFETY: the flush that precedes the freeing of an mm's tables takes every CPU of its mask off it
            // (`flush_ipi`), so the mm that this MMU was on until now has not been freed.
            let prev = unsafe { prev.as_ref() };
            // SAFETY: this is the architecture.
            unsafe { prev.cpumask_of_arch() }.clear_cpu(cpu, Release.at(MASK_CLEAR));
        }
    }

    fn enter_lazy_tlb(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {
        let this = host.arch_state(irqs_off.cpu());
        if MmPtr::new(this.loaded_mm.get()) != Some(MmPtr::from(host.init_mm())) {
            this.is_lazy.set(1);
        }
    }

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, _range: FlushRange, tables_freed: bool) {
        host.platform().fence(SeqCst.at(FLUSH));
        host.flush_cpus(mm, tables_freed);
    }

    unsafe fn flush_ipi(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>, _tables_freed: bool) {
        let this = host.arch_state(irqs_off.cpu());
        if MmPtr::new(this.loaded_mm.get()) != Some(mm) {
            return;
        }
        if this.is_lazy.get() == 0 {
            irqs_off.platform().flush_tlb_local();
        } else if UNLAZY {
            host.unlazy_mm_irqs_off(irqs_off);
        } else {
            // leave_mm: the MMU goes, active_mm stays.
            // SAFETY: the caller is the switch path, and init_mm is never freed.
            unsafe { Self::switch_mm_irqs_off(host, irqs_off, mm, host.init_mm()) };
        }
    }
}

/// The rule of machines whose hardware broadcasts TLB invalidations (arm64, s390, AMD with INVLPGB): a flush
/// interrupts nobody, so nobody is moved off a dying mm by it.
///
/// * `mm_cpumask` has a CPU's bit from its first switch to the mm for the mm's whole life: it covers `active_mm`.
/// * The MMU moves exactly when the scheduler says.
///
/// Sources: arm64's use of broadcast TLBI and its indifference to `mm_cpumask` (here it is kept, so that eviction
/// strategies have something to aim at); Linux commit 4afeb0ed1753 for INVLPGB.
#[derive(Clone, Copy, Debug)]
pub struct BroadcastFlush;

/// Claim: the hardware has a TLB invalidation that reaches all CPUs.
pub trait BroadcastTlb: Platform {
    /// Invalidates all CPUs' cached translations and partial walks of `mm`, and waits until that is done.
    ///
    /// Ordering: after all earlier stores to the page tables.
    fn invalidate_broadcast(self, mm: &MmCore<Self>, range: &FlushRange);
}

impl<P: BroadcastTlb + Platform<Arch = Self>> MmSwitch<P> for BroadcastFlush {
    type CpuState = ();
    type MmState = ();

    const SWITCH_MM_IS_BARRIER: bool = false;

    unsafe fn switch_mm_irqs_off(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, prev: MmPtr<P>, next: &MmCore<P>) {
        if prev == MmPtr::from(next) {
            return;
        }
        let cpu = irqs_off.cpu();
        if MmPtr::from(next) != MmPtr::from(host.init_mm()) && !next.cpumask().test_cpu(cpu, Relaxed) {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
        }
        // SAFETY: `next` lives until the CPU leaves it, and its root with it.
        unsafe { irqs_off.platform().load_root(next.root()) };
    }

    fn enter_lazy_tlb(_host: &impl ArchHost<P>, _irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {}

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, range: FlushRange, _tables_freed: bool) {
        host.platform().invalidate_broadcast(mm, &range);
    }

    unsafe fn flush_ipi(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>, _tables_freed: bool) {
        irqs_off.platform().flush_tlb_local();
    }
}
