//! Flush rules with one step wrong: planted bugs of the architecture's part. They run under [`Refcount`], which needs
//! nothing of the rules, so that what is found is theirs.
//!
//! [`Refcount`]: lazytlb_refcount::Refcount

use lazytlb_core::CpuId;
use lazytlb_core::memory::{Labelled, Ordering::Relaxed};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::mm_switch::{ArchHost, MASK_CLEAR, MASK_SET, MmSwitch};
use lazytlb_core::platform::{Platform, PreemptGuard};
use lazytlb_core::tlb::{Invlpgb, TaggedTlb};
use lazytlb_shootdown::arm64::{AsidContext, AsidState, AsidSteps};
use lazytlb_shootdown::plain::PlainSteps;
use lazytlb_shootdown::power_radix::RadixSteps;
use lazytlb_shootdown::x86::{PerCpuAsids, X86Steps};
use lazytlb_shootdown::x86_broadcast::BroadcastSteps;

/// x86 of 6.12: lazy CPUs are left alone even when tables are freed (B19).
#[derive(Clone, Copy, Debug)]
pub struct SkipsLazies;

impl<P: TaggedTlb> X86Steps<P> for SkipsLazies {
    const KEEPS_BIT: bool = false;
    const TRIM_EVERY: usize = 0;

    type Asids = PerCpuAsids;

    fn skips_lazy(_tables_freed: bool) -> bool {
        true
    }
}

/// A flush does not wait for its broadcast.
#[derive(Clone, Copy, Debug)]
pub struct SkipsTlbsync;

impl BroadcastSteps for SkipsTlbsync {
    fn tlbsync<P: Invlpgb>(_platform: P) {}
}

/// A flush may go on on another CPU than it began on, whose TLBSYNC waits for nothing.
#[derive(Clone, Copy, Debug)]
pub struct SyncsElsewhere;

impl BroadcastSteps for SyncsElsewhere {
    fn pin<P: Platform>(_platform: P) -> Option<PreemptGuard<P>> {
        None
    }
}

/// An mm that has got a global ASID is flushed by broadcast alone at once, while CPUs run it under one of their own.
#[derive(Clone, Copy, Debug)]
pub struct OnlyBroadcasts;

impl BroadcastSteps for OnlyBroadcasts {
    fn interrupts_stragglers() -> bool {
        false
    }
}

/// When all global ASIDs are in use, they are handed out a second time.
#[derive(Clone, Copy, Debug)]
pub struct SharesAsids;

impl BroadcastSteps for SharesAsids {
    fn recycled(used: usize, _freed: usize) -> usize {
        used
    }
}

/// A CPU keeps what it has cached under global ASIDs while it is offline (B06).
#[derive(Clone, Copy, Debug)]
pub struct KeepsItsAsids;

impl BroadcastSteps for KeepsItsAsids {
    fn go_down<P: Platform>(_platform: P) {}
}

/// A switch between two threads of one process takes the CPU out of the mask and puts it in again (B23).
#[derive(Clone, Copy, Debug)]
pub struct LeavesAndEnters;

impl PlainSteps for LeavesAndEnters {
    fn stay<P: Platform>(mm: &MmCore<P>, cpu: CpuId) {
        // SAFETY: this is the architecture.
        let mask = unsafe { mm.cpumask_of_arch() };
        if mask.clear_cpu(cpu, Relaxed.at(MASK_CLEAR)) {
            mask.set_cpu(cpu, MASK_SET);
        }
    }
}

/// A switch looks into the mm that it leaves, as powerpc's does in kernels built for debugging
/// (`VM_WARN_ON_ONCE(!cpumask_test_cpu(cpu, mm_cpumask(prev)))`), and as s390's does always. It runs under
/// [`HazardIpi`](lazytlb_hazard::HazardIpi), which evicts: a borrow that owns a reference keeps what is looked into (C1).
#[derive(Clone, Copy, Debug)]
pub struct LooksAtPrev;

impl PlainSteps for LooksAtPrev {
    fn left<P: Platform>(prev: MmPtr<P>, cpu: CpuId) {
        // SAFETY: not; that is the bug. In the model the memory stays in the arena.
        unsafe { prev.as_ref() }.cpumask().test_cpu(cpu, Relaxed);
    }
}

/// Who trims takes every other CPU for a lazy one, which has left after the interrupt, and makes the mask its own (B07).
#[derive(Clone, Copy, Debug)]
pub struct OthersAreLazy;

impl RadixSteps for OthersAreLazy {
    fn trim<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>, tables_freed: bool) {
        host.flush_cpus(mm, tables_freed);
        clear_others(host, mm);
    }
}

/// Who trims makes the mask its own and interrupts nobody (B08).
#[derive(Clone, Copy, Debug)]
pub struct ResetsMask;

impl RadixSteps for ResetsMask {
    fn trim<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>, _tables_freed: bool) {
        clear_others(host, mm);
    }
}

/// A single user is taken for the only one that can load the mm: nobody is asked to flush (B41).
#[derive(Clone, Copy, Debug)]
pub struct TrustsUsers;

impl RadixSteps for TrustsUsers {
    fn trim<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>, tables_freed: bool) {
        if mm.users() == 0 {
            host.flush_cpus(mm, tables_freed);
        }
    }
}

/// The flush may go on on another CPU than it began on (B10).
#[derive(Clone, Copy, Debug)]
pub struct Unpinned;

impl RadixSteps for Unpinned {
    fn pin<P: Platform>(_platform: P) -> Option<PreemptGuard<P>> {
        None
    }
}

/// A CPU keeps what it has cached while it is offline (B06).
#[derive(Clone, Copy, Debug)]
pub struct KeepsItsTlb;

impl RadixSteps for KeepsItsTlb {
    fn go_down<P: Platform>(_platform: P) {}
}

/// At a rollover nothing is reserved: a CPU that comes back from lazy mode goes on with an ASID that its mm has no more (B21).
#[derive(Clone, Copy, Debug)]
pub struct ForgetsLazies;

impl AsidSteps for ForgetsLazies {
    fn reserve<P: Platform>(_cpu: &AsidState<P>) {}
}

/// As [`ForgetsLazies`], and who flushes an mm that it borrows uses the ASID that it borrowed it with (B22).
#[derive(Clone, Copy, Debug)]
pub struct FlushesItsOwn;

impl AsidSteps for FlushesItsOwn {
    fn reserve<P: Platform>(_cpu: &AsidState<P>) {}

    fn context_to_flush<P>(host: &impl ArchHost<P>, _mm: &AsidContext<P>) -> usize
    where
        P: Platform,
        P::Arch: MmSwitch<P, CpuState = AsidState<P>>,
    {
        host.arch_state(host.platform().smp_processor_id()).active()
    }
}

/// After a rollover a CPU goes on with what it has cached under ASIDs that others get now (A01).
#[derive(Clone, Copy, Debug)]
pub struct NeverFlushes;

impl AsidSteps for NeverFlushes {
    fn make_flush<P: Platform>(_cpu: &AsidState<P>) {}
}

/// An ASID that some CPU is on is handed out to another mm (A02).
#[derive(Clone, Copy, Debug)]
pub struct SharesReserved;

impl AsidSteps for SharesReserved {
    fn is_free(_is_reserved: bool) -> bool {
        true
    }
}

/// An mm that has had a context once keeps it, whatever the generation (A03).
#[derive(Clone, Copy, Debug)]
pub struct KeepsOldContexts;

impl AsidSteps for KeepsOldContexts {
    fn is_current(of_context: usize, _generation: usize) -> bool {
        of_context != 0
    }
}

/// An mm keeps its reserved ASID through one rollover and not through the next: it is reserved under its old name still (A04).
#[derive(Clone, Copy, Debug)]
pub struct ReservesOnce;

impl AsidSteps for ReservesOnce {
    fn renew<P: Platform>(_cpu: &AsidState<P>, _context: usize) {}
}

/// A CPU that goes offline keeps its translations (B06c).
#[derive(Clone, Copy, Debug)]
pub struct SleepsOnItsTlb;

impl AsidSteps for SleepsOnItsTlb {
    fn go_down<P: Platform>(_platform: P) {}
}

/// Takes all CPUs but the calling one out of the mask.
fn clear_others<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>) {
    let me = host.platform().smp_processor_id();
    // SAFETY: this is the architecture.
    let mask = unsafe { mm.cpumask_of_arch() };
    for cpu in mask.cpus(Relaxed).filter(|&cpu| cpu != me) {
        mask.clear_cpu(cpu, Relaxed);
    }
}
