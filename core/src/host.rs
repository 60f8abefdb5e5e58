//! What the switch path offers to the two parties that hang on it, and to nobody else.
//!
//! A type of its own, so that a strategy's and an architecture's state can be had only by their own steps: whoever has
//! the [`Switcher`] has no [`Host`].

use crate::cpumask::{Among, CpuId};
use crate::lazy_tlb::{Host, LazyTlb};
use crate::mm::{CountRef, Mm, MmCore, MmPtr};
use crate::mm_switch::{ArchHost, MmSwitch};
use crate::platform::{IrqsOff, Platform};
use crate::smp::Call;
use crate::switcher::Switcher;

/// The switch path as its strategy and its architecture see it.
pub(crate) struct Inside<'a, P: Platform, S: LazyTlb<P>>(pub(crate) &'a Switcher<P, S>);

impl<P: Platform, S: LazyTlb<P>> Host<P, S> for Inside<'_, P, S> {
    fn platform(&self) -> P {
        self.0.platform
    }

    fn cpu_state(&self, cpu: CpuId) -> &S::CpuState {
        &self.0.cpu(cpu).strategy
    }

    fn mm_state<'a>(&self, mm: &'a MmCore<P>) -> &'a S::MmState {
        // SAFETY: every core that a switcher hands to its strategy is that of one of its own Mms.
        let mm = unsafe { Mm::<P, S>::of(MmPtr::from(mm)) };
        // SAFETY: this is the switch path.
        unsafe { mm.strategy() }
    }

    fn shared(&self) -> &S::Shared {
        &self.0.shared
    }

    fn mmdrop(&self, reference: CountRef<P>) {
        self.0.drop_reference(reference);
    }

    unsafe fn free_mm(&self, mm: MmPtr<P>) {
        // SAFETY: `count` reached zero before the strategy was given it, and the rest is the strategy's word.
        unsafe { self.0.free_mm(mm) };
    }

    fn evict_lazies(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.call_cpus(among, is_target, Call::Evict, mm);
    }

    fn evict_by_root(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.call_cpus(among, is_target, Call::EvictByRoot, mm);
    }

    unsafe fn evict_unused(&self, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.call_cpus(among, is_target, Call::EvictUnused, self.0.init_mm().core());
    }

    fn check_lazies_gone(&self, mm: &MmCore<P>) {
        self.0.call_cpus(Among::All, |_| true, Call::CheckGone, mm);
    }
}

impl<P: Platform, S: LazyTlb<P>> ArchHost<P> for Inside<'_, P, S> {
    fn platform(&self) -> P {
        self.0.platform
    }

    fn arch_state(&self, cpu: CpuId) -> &<P::Arch as MmSwitch<P>>::CpuState {
        &self.0.cpu(cpu).arch
    }

    fn init_mm(&self) -> &MmCore<P> {
        self.0.init_mm().core()
    }

    fn flush_cpus(&self, mm: &MmCore<P>, tables_freed: bool) {
        self.flush_cpus_if(mm, tables_freed, |_| true);
    }

    fn flush_cpus_if(&self, mm: &MmCore<P>, tables_freed: bool, is_target: impl Fn(CpuId) -> bool) {
        let call = if tables_freed { Call::FlushFreedTables } else { Call::Flush };
        self.0.call_cpus(Among::Mask(mm.cpumask()), is_target, call, mm);
    }

    fn unlazy_mm_irqs_off(&self, irqs_off: &IrqsOff<'_, P>) {
        self.0.unlazy_mm_irqs_off(irqs_off);
    }
}
