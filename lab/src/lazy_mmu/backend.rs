//! The library's back ends on the toy machine, chosen by name.

use core::cell::RefCell;
use core::ops::Range;

use lazytlb_lazy_mmu::backends::xen::{Form, SwitchState, X1, X2, X3, X4, X5};
use lazytlb_lazy_mmu::backends::{Arm64, MmuKernel, PowerpcHash, PteAccess, S390, Sparc64, Xen};
use lazytlb_lazy_mmu::conformance::Callback;
use lazytlb_lazy_mmu::{LazyMmuArch, LazyMmuState, Warning};
use lazytlb_toy_mmu::{BATCH, QUEUE, TABLE, ToyMmu};

/// A back end, whatever its type is.
pub(super) trait BackEnd {
    fn callback(&self, callback: Callback, named: Option<Range<usize>>);
    fn set(&self, addr: usize, value: usize);
    fn get(&self, addr: usize) -> usize;

    /// The CPU switches between two tasks.
    fn switch(&self, from: &Switched<'_>, to: &Switched<'_>) {
        let _ = (from, to);
    }
}

/// A task at a switch.
pub(super) struct Switched<'a> {
    pub(super) number: usize,
    /// Whether it has the mode on.
    pub(super) is_on: bool,
    /// Its state, where it is the merged generation's.
    pub(super) merged: Option<&'a LazyMmuState>,
    /// Where callbacks are written down.
    pub(super) callbacks: &'a RefCell<Vec<Callback>>,
}

/// What an architecture defers.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Nothing: all changes take effect at once.
    None,
    /// Barriers.
    Arm64,
    /// Invalidations in the hash table and the TLBs, 192 at a time.
    PowerpcHash,
    /// Nothing: the same kernel on a machine without a hash table.
    PowerpcRadix,
    /// Invalidations in the TSB and the TLBs, 192 at a time.
    Sparc64,
    /// Stores and flushes, 32 at a time; as it was to Linux 6.19, but for 2023 to 2025.
    XenX1,
    /// The same with nesting that was counted, 2023 to March 2025.
    XenX2,
    /// The same in Linux 7.0 to 7.1-rc3.
    XenX3,
    /// The same from 7.1-rc4 on.
    XenX4,
    /// The same after May 2026.
    XenX5,
    /// Stores into the entries that a section has named, 256 at a time.
    S390,
}

impl Name {
    /// The back end, on a new machine.
    pub(super) fn on_new_machine(self) -> Box<dyn BackEnd> {
        ToyMmu.reset();
        match self {
            Name::None => Box::new(Nothing),
            Name::Arm64 => Box::new(Plain(Arm64(ToyMmu))),
            Name::PowerpcHash | Name::PowerpcRadix => {
                ToyMmu.set_radix(self == Name::PowerpcRadix);
                Box::new(Plain(PowerpcHash::<ToyMmu, BATCH>(ToyMmu)))
            }
            Name::Sparc64 => Box::new(Plain(Sparc64::<ToyMmu, BATCH>(ToyMmu))),
            Name::XenX1 => Box::new(Xen::<ToyMmu, X1, QUEUE>::new(ToyMmu)),
            Name::XenX2 => Box::new(Xen::<ToyMmu, X2, QUEUE>::new(ToyMmu)),
            Name::XenX3 => Box::new(Xen::<ToyMmu, X3, QUEUE>::new(ToyMmu)),
            Name::XenX4 => Box::new(Xen::<ToyMmu, X4, QUEUE>::new(ToyMmu)),
            Name::XenX5 => Box::new(Xen::<ToyMmu, X5, QUEUE>::new(ToyMmu)),
            Name::S390 => Box::new(S390::<ToyMmu, TABLE>(ToyMmu)),
        }
    }
}

/// Makes a call of the generic layer on an architecture.
fn make<A: LazyMmuArch>(arch: &A, callback: Callback, named: Option<A::Ptes>) {
    match (callback, named) {
        (Callback::EnterWithPtes, Some(named)) => arch.arch_enter_lazy_mmu_mode_with_ptes(named),
        (Callback::Enter | Callback::EnterWithPtes, _) => arch.arch_enter_lazy_mmu_mode(),
        (Callback::Leave, _) => arch.arch_leave_lazy_mmu_mode(),
        (Callback::Flush, _) => arch.arch_flush_lazy_mmu_mode(),
    }
}

fn set(arch: &impl PteAccess<Kernel = ToyMmu>, addr: usize, value: usize) {
    // SAFETY: the toy machine's tables stay.
    unsafe { arch.set_pte(ToyMmu.pte(addr), value) };
}

fn get(arch: &impl PteAccess<Kernel = ToyMmu>, addr: usize) -> usize {
    // SAFETY: the toy machine's tables stay.
    unsafe { arch.ptep_get(ToyMmu.pte(addr)) }
}

/// An architecture without anything to defer.
struct Nothing;

impl BackEnd for Nothing {
    fn callback(&self, _: Callback, _: Option<Range<usize>>) {}
    fn set(&self, addr: usize, value: usize) {
        // SAFETY: the toy machine's tables stay.
        unsafe { ToyMmu.pte(addr).store(value) };
    }
    fn get(&self, addr: usize) -> usize {
        // SAFETY: the toy machine's tables stay.
        unsafe { ToyMmu.pte(addr).load() }
    }
}

/// A back end that takes no hint and has no hooks at a switch.
struct Plain<B>(B);

impl<B: PteAccess<Kernel = ToyMmu, Ptes = ()>> BackEnd for Plain<B> {
    fn callback(&self, callback: Callback, _: Option<Range<usize>>) {
        make(&self.0, callback, Some(()));
    }
    fn set(&self, addr: usize, value: usize) {
        set(&self.0, addr, value);
    }
    fn get(&self, addr: usize) -> usize {
        get(&self.0, addr)
    }
}

impl BackEnd for S390<ToyMmu, TABLE> {
    fn callback(&self, callback: Callback, named: Option<Range<usize>>) {
        make(self, callback, named.and_then(|named| ToyMmu.range(named)));
    }
    fn set(&self, addr: usize, value: usize) {
        set(self, addr, value);
    }
    fn get(&self, addr: usize) -> usize {
        get(self, addr)
    }
}

impl<F: Form> BackEnd for Xen<ToyMmu, F, QUEUE> {
    fn callback(&self, callback: Callback, _: Option<Range<usize>>) {
        make(self, callback, Some(()));
    }
    fn set(&self, addr: usize, value: usize) {
        set(self, addr, value);
    }
    fn get(&self, addr: usize) -> usize {
        get(self, addr)
    }
    fn switch(&self, from: &Switched<'_>, to: &Switched<'_>) {
        self.start_context_switch(from, ToyMmu.xen_task(from.number));
        self.end_context_switch(to, ToyMmu.xen_task(to.number));
    }
}

impl SwitchState for Switched<'_> {
    fn is_on(&self) -> bool {
        self.is_on
    }
    fn pause<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.merged {
            state.task_lazy_mmu_mode_pause(&Recorded { arch, callbacks: self.callbacks });
        }
    }
    fn resume<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.merged {
            state.task_lazy_mmu_mode_resume(&Recorded { arch, callbacks: self.callbacks });
        }
    }
}

/// An architecture whose callbacks are written down.
struct Recorded<'a, A> {
    arch: &'a A,
    callbacks: &'a RefCell<Vec<Callback>>,
}

impl<A: LazyMmuArch> LazyMmuArch for Recorded<'_, A> {
    type Ptes = ();

    fn debug_vm(&self) -> bool {
        true
    }
    fn in_interrupt(&self) -> bool {
        self.arch.in_interrupt()
    }
    fn arch_enter_lazy_mmu_mode(&self) {
        self.callbacks.borrow_mut().push(Callback::Enter);
        self.arch.arch_enter_lazy_mmu_mode();
    }
    fn arch_leave_lazy_mmu_mode(&self) {
        self.callbacks.borrow_mut().push(Callback::Leave);
        self.arch.arch_leave_lazy_mmu_mode();
    }
    fn arch_flush_lazy_mmu_mode(&self) {
        self.callbacks.borrow_mut().push(Callback::Flush);
        self.arch.arch_flush_lazy_mmu_mode();
    }
    fn warn(&self, warning: Warning) {
        ToyMmu.warn(warning);
    }
    fn bug(&self, warning: Warning) {
        ToyMmu.bug(warning);
    }
}
