//! [`PowerRadix`]: the flush rule of 64-bit server powerpc with radix tables.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::null_mut;

use lazytlb_core::memory::{Labelled, LocalWord, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::mm_switch::{ArchHost, FLUSH, FlushRange, MASK_CLEAR, MASK_SET, MmSwitch};
use lazytlb_core::platform::{IrqsOff, Platform, PreemptGuard};
use lazytlb_core::tlb::{BroadcastTags, OwnTag};

/// Hardware broadcasts invalidations by tag, but a local one is far cheaper; so the rule works to keep masks small.
///
/// * Each mm has a tag of its own (a PID), so a switch drops nothing, and a CPU keeps translations of mms that it has left.
///   `mm_cpumask` holds every CPU that may have any: a bit is set before the first load of the root and stays when the CPU
///   leaves.
/// * A flush of an mm that only the calling CPU has in its mask is local. Of an mm with at most one user it *trims*: the
///   CPUs of the mask are interrupted, each decides for itself, and the flush ends with a local one. Of any other mm it is
///   broadcast and interrupts nobody.
/// * A CPU that is interrupted drops what it has under the tag. If it runs a user of the mm, a kernel thread that has adopted
///   it included, it keeps its bit. If it borrows the mm it leaves for `init_mm`, pointer and MMU together. Then, and if it
///   was elsewhere already, it clears its own bit, and nobody else's: only the CPU itself can say that no user is about to
///   come back there (Linux commit a665eec0a22e; `mm_users == 1` does not say it, because a user can be taken anew).
/// * The flush of the last mmput always trims, itself included, and so leaves no borrower behind: the mask covers
///   `active_mm`, and [`FLUSH_ENDS_BORROWS`](lazytlb_core::platform::MaskCoversLazy::FLUSH_ENDS_BORROWS) holds.
/// * A CPU that goes offline drops everything: no trim can interrupt it. Its bits stay, so what it was on is not local
///   elsewhere until it has been back. (Linux clears them, in a walk over all tasks' mms.)
///
/// *Orderings:* pair L8, with [`MASK_SET`] and [`FLUSH`]. Pair L10: pointer, MMU and bit change with interrupts off, so a flush
/// finds a CPU before or after (commit dfaed3e1fa70). Preemption is off from the look at the mask to the local flush, else
/// that could be another CPU's.
///
/// Sources: arch/powerpc/mm/book3s64/radix_tlb.c; Linux commits 0cef77c7798a and a665eec0a22e; Piggin, May 2023, "powerpc/64s/
/// radix: Combine final TLB flush and lazy tlb mm shootdown IPIs".
pub type PowerRadix = Radix<EachForItself>;

/// [`PowerRadix`], with the steps that a test can override.
pub struct Radix<Steps>(PhantomData<Steps>);

impl<Steps> fmt::Debug for Radix<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Radix")
    }
}

/// The steps in which the rule has gone wrong before. A test overrides one of them to see it caught.
pub trait RadixSteps: 'static {
    /// The caller stays on its CPU from the look at the mask to the local flush.
    fn pin<P: Platform>(platform: P) -> Option<PreemptGuard<P>> {
        Some(PreemptGuard::new(platform))
    }

    /// Asks the CPUs of the mask to flush, and to leave the mask if they can.
    fn trim<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>, tables_freed: bool) {
        host.flush_cpus(mm, tables_freed);
    }

    /// The CPU goes offline, on `init_mm`.
    fn go_down<P: Platform>(platform: P) {
        platform.flush_tlb_local();
    }
}

/// The steps as they must be: each CPU decides for itself.
#[derive(Clone, Copy, Debug)]
pub struct EachForItself;

impl RadixSteps for EachForItself {}

/// [`PowerRadix`]'s state for a CPU.
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
        Loaded { loaded_mm: LocalWord::new(null_mut()), is_lazy: LocalWord::new(0) }
    }

    fn reinit(&self) {
        self.loaded_mm.set(null_mut());
        self.is_lazy.set(0);
    }
}

impl<P: Platform> fmt::Debug for Loaded<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loaded { .. }")
    }
}

impl<P: BroadcastTags + OwnTag + Platform<Arch = Self>, Steps: RadixSteps> MmSwitch<P> for Radix<Steps> {
    type CpuState = Loaded<P>;
    type MmState = ();

    const SWITCH_MM_IS_BARRIER: bool = false;

    unsafe fn switch_mm_irqs_off(
        host: &impl ArchHost<P>,
        irqs_off: &IrqsOff<'_, P>,
        _prev: MmPtr<P>,
        next: &MmCore<P>,
    ) {
        let (cpu, platform) = (irqs_off.cpu(), irqs_off.platform());
        let this = host.arch_state(cpu);
        let next_ptr = MmPtr::from(next);
        this.is_lazy.set(0);
        if MmPtr::new(this.loaded_mm.get()) == Some(next_ptr) {
            return;
        }
        if next_ptr != MmPtr::from(host.init_mm()) && !next.cpumask().test_cpu(cpu, Relaxed) {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
        }
        // SAFETY: `next` lives until the CPU leaves it. What is cached under its tag is its own, and every flush since has
        // reached this CPU: its bit was set as long as it had anything.
        unsafe { platform.load_root_tagged(next.root(), platform.tag_of(next), true) };
        this.loaded_mm.set(next_ptr.as_ptr());
    }

    fn enter_lazy_tlb(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {
        let this = host.arch_state(irqs_off.cpu());
        if MmPtr::new(this.loaded_mm.get()) != Some(MmPtr::from(host.init_mm())) {
            this.is_lazy.set(1);
        }
    }

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, _range: FlushRange, tables_freed: bool) {
        let platform = host.platform();
        let _pinned = Steps::pin(platform);
        platform.fence(SeqCst.at(FLUSH));
        let me = platform.smp_processor_id();
        let is_local = mm.cpumask().cpus(Relaxed).all(|cpu| cpu == me);
        let users = mm.users();
        if users == 0 || (!is_local && users == 1) {
            Steps::trim(host, mm, tables_freed);
        } else if !is_local {
            return platform.flush_tag_broadcast(platform.tag_of(mm));
        }
        platform.flush_tag_local(platform.tag_of(mm));
    }

    unsafe fn flush_ipi(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>, _tables_freed: bool) {
        let (cpu, platform) = (irqs_off.cpu(), irqs_off.platform());
        let this = host.arch_state(cpu);
        // SAFETY: alive, the flusher waits.
        let core = unsafe { mm.as_ref() };
        let is_loaded = MmPtr::new(this.loaded_mm.get()) == Some(mm);
        let is_lazy = this.is_lazy.get() != 0;
        if is_loaded && is_lazy {
            host.unlazy_mm_irqs_off(irqs_off);
        }
        platform.flush_tag_local(platform.tag_of(core));
        if !is_loaded || is_lazy {
            // SAFETY: this is the architecture.
            unsafe { core.cpumask_of_arch() }.clear_cpu(cpu, Release.at(MASK_CLEAR));
        }
    }

    fn cpu_going_down(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>) {
        Steps::go_down(irqs_off.platform());
    }
}
