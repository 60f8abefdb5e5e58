//! The steps of flush rules, of which the one is wrong that is planted. They run under the strategy that
//! [`Mutant::strategy`] names.

use lazytlb_core::CpuId;
use lazytlb_core::memory::{Labelled, Ordering::Relaxed};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::mm_switch::{ArchHost, MASK_CLEAR, MASK_SET, MmSwitch};
use lazytlb_core::platform::{Platform, PreemptGuard};
use lazytlb_core::tlb::{Invlpgb, TaggedTlb};
use lazytlb_shootdown::arm64::{AsidContext, AsidState, AsidSteps, Reserving};
use lazytlb_shootdown::plain::PlainSteps;
use lazytlb_shootdown::power_radix::{EachForItself, RadixSteps};
use lazytlb_shootdown::x86::{Context, PerCpuAsids, X86Steps};
use lazytlb_shootdown::x86_broadcast::{BroadcastSteps, Complete};

use crate::mutants::{Mutant, Wrong};

impl<P: TaggedTlb> X86Steps<P> for Wrong {
    const KEEPS_BIT: bool = false;
    const TRIM_EVERY: usize = 0;

    type Asids = PerCpuAsids;

    fn skips_lazy(tables_freed: bool) -> bool {
        Mutant::SkipsLazies.is_planted() || !tables_freed
    }

    fn context_id<Global>(mm: &MmCore<P>, context: &Context<P, Global>, init_mm: &Context<P, Global>) -> usize {
        if Mutant::KnowsByAddress.is_planted() { MmPtr::from(mm).as_ptr().addr() } else { context.id(init_mm) }
    }

    fn leaves_mask_first() -> bool {
        Mutant::LeavesMaskFirst.is_planted()
    }
}

impl BroadcastSteps for Wrong {
    fn pin<P: Platform>(platform: P) -> Option<PreemptGuard<P>> {
        if Mutant::SyncsElsewhere.is_planted() { None } else { Complete::pin(platform) }
    }

    fn tlbsync<P: Invlpgb>(platform: P) {
        if !Mutant::SkipsTlbsync.is_planted() {
            Complete::tlbsync(platform);
        }
    }

    fn interrupts_stragglers() -> bool {
        !Mutant::OnlyBroadcasts.is_planted()
    }

    fn recycled(used: usize, freed: usize) -> usize {
        if Mutant::SharesAsids.is_planted() { used } else { Complete::recycled(used, freed) }
    }

    fn go_down<P: Platform>(platform: P) {
        if !Mutant::KeepsItsAsids.is_planted() {
            Complete::go_down(platform);
        }
    }
}

impl PlainSteps for Wrong {
    fn stay<P: Platform>(mm: &MmCore<P>, cpu: CpuId) {
        if !Mutant::LeavesAndEnters.is_planted() {
            return;
        }
        // SAFETY: this is the architecture.
        let mask = unsafe { mm.cpumask_of_arch() };
        if mask.clear_cpu(cpu, Relaxed.at(MASK_CLEAR)) {
            mask.set_cpu(cpu, MASK_SET);
        }
    }

    fn left<P: Platform>(prev: MmPtr<P>, cpu: CpuId) {
        if Mutant::LooksAtPrev.is_planted() {
            // SAFETY: not; that is the bug. In the model the memory stays in the arena.
            unsafe { prev.as_ref() }.cpumask().test_cpu(cpu, Relaxed);
        }
    }
}

impl RadixSteps for Wrong {
    fn pin<P: Platform>(platform: P) -> Option<PreemptGuard<P>> {
        if Mutant::Unpinned.is_planted() { None } else { EachForItself::pin(platform) }
    }

    fn trim<P: Platform>(host: &impl ArchHost<P>, mm: &MmCore<P>, tables_freed: bool) {
        if Mutant::ResetsMask.is_planted() {
            return clear_others(host, mm);
        }
        if Mutant::TrustsUsers.is_planted() && mm.users() != 0 {
            return;
        }
        EachForItself::trim(host, mm, tables_freed);
        if Mutant::OthersAreLazy.is_planted() {
            clear_others(host, mm);
        }
    }

    fn go_down<P: Platform>(platform: P) {
        if !Mutant::KeepsItsTlb.is_planted() {
            EachForItself::go_down(platform);
        }
    }
}

impl AsidSteps for Wrong {
    fn reserve<P: Platform>(cpu: &AsidState<P>) {
        if !Mutant::ForgetsLazies.is_planted() && !Mutant::FlushesItsOwn.is_planted() {
            Reserving::reserve(cpu);
        }
    }

    fn is_current(of_context: usize, generation: usize) -> bool {
        if Mutant::KeepsOldContexts.is_planted() {
            of_context != 0
        } else {
            Reserving::is_current(of_context, generation)
        }
    }

    fn is_free(is_reserved: bool) -> bool {
        Mutant::SharesReserved.is_planted() || Reserving::is_free(is_reserved)
    }

    fn renew<P: Platform>(cpu: &AsidState<P>, context: usize) {
        if !Mutant::ReservesOnce.is_planted() {
            Reserving::renew(cpu, context);
        }
    }

    fn make_flush<P: Platform>(cpu: &AsidState<P>) {
        if !Mutant::NeverFlushes.is_planted() {
            Reserving::make_flush(cpu);
        }
    }

    fn go_down<P: Platform>(platform: P) {
        if !Mutant::SleepsOnItsTlb.is_planted() {
            Reserving::go_down(platform);
        }
    }

    fn context_to_flush<P>(host: &impl ArchHost<P>, mm: &AsidContext<P>) -> usize
    where
        P: Platform,
        P::Arch: MmSwitch<P, CpuState = AsidState<P>>,
    {
        if Mutant::FlushesItsOwn.is_planted() {
            host.arch_state(host.platform().smp_processor_id()).active()
        } else {
            Reserving::context_to_flush(host, mm)
        }
    }
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
