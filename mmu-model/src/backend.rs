//! The library's back ends behind one type, with what a switch does to them and what is checked of their callbacks.

use lazytlb_lazy_mmu::backends::powerpc::HashKernel;
use lazytlb_lazy_mmu::backends::s390::PteRange;
use lazytlb_lazy_mmu::backends::xen::{Form, X1, X2, X3, X4, X5};
use lazytlb_lazy_mmu::backends::{Arm64, MmuKernel, PowerpcHash, Pte, PteAccess, S390, Sparc64, Xen};
use lazytlb_lazy_mmu::{LazyMmuArch, Warning};
use lazytlb_machine::{Machine, SimLocal};

use crate::calls::{Named, Switched};
use crate::hardware::bits;
use crate::kernel::{BATCH, Kernel, LabMmu, QUEUE, TABLE, locals, this_cpu, this_task};
use crate::names::{Arch, Mutant};
use crate::rules::{Rule, broken};

/// A back end of the library's.
pub(crate) trait BackEnd: PteAccess<Kernel = LabMmu> {
    /// Whether a callback that comes twice, or not, makes no difference.
    const TOLERATES: bool = false;

    /// What a section names.
    fn ptes(&self, named: Named) -> Self::Ptes;

    /// The kernel flushes the TLBs: behind what is deferred.
    fn flush_tlb(&self) {
        LabMmu.hardware().flush_tlb(0..TABLE);
    }

    /// The CPU is about to leave a task.
    fn switch_out(&self, prev: usize) {
        let _ = prev;
    }

    /// The CPU has come to a task.
    fn switch_in(&self, next: usize) {
        let _ = next;
    }

    /// A task has not run yet.
    fn new_task(&self, task: usize) {
        let _ = task;
    }

    /// Whether a CPU is in nobody's section.
    fn is_idle(&self, kernel: &Kernel, cpu: usize) -> bool {
        self.is_empty(kernel, cpu)
    }

    /// Whether nothing waits on a CPU.
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        let _ = (kernel, cpu);
        true
    }

    /// Whether the invalidation of an entry waits on a CPU, whose new value is in force.
    fn is_to_invalidate(&self, kernel: &Kernel, cpu: usize, entry: usize) -> bool {
        let _ = (kernel, cpu, entry);
        false
    }

    /// Whether an entry of a section's is one that only the accessors may read.
    fn is_poisoned(&self, entry: usize) -> bool {
        let _ = entry;
        false
    }
}

/// An architecture that defers nothing.
#[derive(Clone, Copy)]
struct Nothing;

impl LazyMmuArch for Nothing {
    type Ptes = ();

    fn debug_vm(&self) -> bool {
        true
    }
    fn in_interrupt(&self) -> bool {
        LabMmu.in_interrupt()
    }
    fn arch_enter_lazy_mmu_mode(&self) {}
    fn arch_leave_lazy_mmu_mode(&self) {}
    fn arch_flush_lazy_mmu_mode(&self) {}
    fn warn(&self, warning: Warning) {
        LabMmu.warn(warning);
    }
    fn bug(&self, warning: Warning) {
        LabMmu.bug(warning);
    }
}

impl PteAccess for Nothing {
    type Kernel = LabMmu;

    unsafe fn set_pte(&self, pte: Pte<LabMmu>, value: usize) {
        // SAFETY: the caller's promise.
        unsafe { pte.store(value) };
    }
    unsafe fn pte_update(&self, pte: Pte<LabMmu>, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: as above.
        unsafe { pte.update(change) }
    }
}

impl BackEnd for Nothing {
    const TOLERATES: bool = true;

    fn ptes(&self, _: Named) {}
}

impl BackEnd for Arm64<LabMmu> {
    fn ptes(&self, _: Named) {}
    /// `__switch_to` has a barrier of its own.
    fn switch_out(&self, prev: usize) {
        LabMmu.kernel().books.store_barrier(prev);
    }
}

impl BackEnd for PowerpcHash<LabMmu, BATCH> {
    fn ptes(&self, _: Named) {}
    fn flush_tlb(&self) {
        // Nothing but the batch can be stale: what is changed outside of a section is invalidated at once.
        self.tlb_flush();
        if LabMmu.radix_enabled() {
            LabMmu.hardware().flush_tlb(0..TABLE);
        }
    }
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        kernel.cpus[cpu].hash.is_empty()
    }
    fn is_to_invalidate(&self, kernel: &Kernel, cpu: usize, entry: usize) -> bool {
        let batch = &kernel.cpus[cpu].hash;
        batch.entries(batch.len()).any(|[addr, _]| addr == entry)
    }
}

impl BackEnd for Sparc64<LabMmu, BATCH> {
    fn ptes(&self, _: Named) {}
    fn flush_tlb(&self) {
        LabMmu.preempt_disable();
        self.arch_flush_lazy_mmu_mode();
        LabMmu.preempt_enable();
    }
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        kernel.cpus[cpu].tlb.is_empty()
    }
    fn is_to_invalidate(&self, kernel: &Kernel, cpu: usize, entry: usize) -> bool {
        let batch = &kernel.cpus[cpu].tlb;
        batch.entries(batch.len()).any(|[addr]| addr / 2 == entry)
    }
}

impl BackEnd for S390<LabMmu, TABLE> {
    fn ptes(&self, (first, last): Named) -> PteRange<LabMmu> {
        let Pte { mm, addr, ptep } = LabMmu.pte(first);
        // SAFETY: the entries stay, and stand in one slice. (A program that names some of another mm's breaks R17.)
        unsafe { PteRange::new(mm, addr..addr + (last + 1 - first), ptep) }
    }
    /// What waits in the cache is invalidated when it is stored, so a flush before it is in force owes it nothing.
    fn flush_tlb(&self) {
        LabMmu.hardware().invalidate(0..TABLE);
    }
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        kernel.cpus[cpu].cache.is_empty()
    }
    /// As the sanitizer of the series has it: the entries that this CPU's section has named.
    fn is_poisoned(&self, entry: usize) -> bool {
        let kernel = LabMmu.kernel();
        let entries = if LabMmu.has(Mutant::HalfGranules) { entry & !1..(entry | 1) + 1 } else { entry..entry + 1 };
        let is_named = |cpu: usize| {
            let named = Machine::with(|machine| machine.inspect(|| kernel.cpus[cpu].cache.addrs()));
            named.is_some_and(|named| entries.clone().any(|entry| named.contains(&entry)))
        };
        if LabMmu.has(Mutant::PoisonForAll) { (0..kernel.cpus.len()).any(is_named) } else { is_named(this_cpu()) }
    }
}

impl<F: Form> BackEnd for Xen<LabMmu, F, QUEUE> {
    const TOLERATES: bool = F::TOLERATES || !F::CPU_KNOWS;

    fn ptes(&self, _: Named) {}
    fn flush_tlb(&self) {
        if LabMmu.has(Mutant::FlushPastQueue) {
            LabMmu.hardware().flush_tlb(0..TABLE);
        } else {
            Xen::flush_tlb(self);
        }
    }
    fn switch_out(&self, prev: usize) {
        let kernel = LabMmu.kernel();
        self.start_context_switch(&Switched(kernel.states[prev]), &kernel.tasks[prev].xen);
    }
    fn switch_in(&self, next: usize) {
        let kernel = LabMmu.kernel();
        self.end_context_switch(&Switched(kernel.states[next]), &kernel.tasks[next].xen);
    }
    fn new_task(&self, task: usize) {
        // Nothing is entered, so the pause asks nothing of the architecture.
        if let Some(state) = LabMmu.kernel().states[task].merged().filter(|_| !F::CPU_KNOWS) {
            state.task_lazy_mmu_mode_pause(self);
        }
    }
    fn is_idle(&self, kernel: &Kernel, cpu: usize) -> bool {
        kernel.cpus[cpu].xen.is_idle()
    }
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        kernel.cpus[cpu].xen.is_empty()
    }
}

/// A back end, whichever it is.
pub(crate) trait DynBackEnd: LazyMmuArch<Ptes = Named> {
    fn set(&self, entry: usize, value: usize);
    /// Returns what it has read, as do the next two.
    fn clear_full(&self, entry: usize) -> usize;
    /// An entry's transaction: it holds `value` then, and the bits that it had.
    fn protect(&self, entry: usize, value: usize) -> usize;
    fn age(&self, entry: usize) -> usize;
    fn get(&self, entry: usize) -> usize;
    fn flush_tlb(&self);
    fn switch_out(&self, prev: usize);
    fn switch_in(&self, next: usize);
    fn new_task(&self, task: usize);
    fn is_idle(&self, kernel: &Kernel, cpu: usize) -> bool;
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool;
    fn is_to_invalidate(&self, kernel: &Kernel, cpu: usize, entry: usize) -> bool;
    fn is_poisoned(&self, entry: usize) -> bool;
    /// Whether the architecture is in the mode for a task, by its callbacks.
    fn is_entered(&self, task: usize) -> bool;
}

/// A back end whose callbacks are watched.
struct Watched<B> {
    arch: B,
    /// Whether each task's architecture is in the mode, by its callbacks.
    entered: &'static [SimLocal<usize>],
}

impl<B: BackEnd> Watched<B> {
    /// A callback comes that belongs where the mode is on, or off, and leaves it on or off.
    fn callback(&self, belongs: bool, leaves: bool, call: impl FnOnce()) {
        let entered = &self.entered[this_task()];
        if !B::TOLERATES && (entered.peek() != 0) != belongs {
            broken(Rule::R3);
        }
        // Until it is over the mode may be on.
        entered.poke(usize::from(belongs || leaves));
        call();
        entered.poke(usize::from(leaves));
    }
}

impl<B: BackEnd> LazyMmuArch for Watched<B> {
    type Ptes = Named;

    fn debug_vm(&self) -> bool {
        self.arch.debug_vm()
    }
    fn in_interrupt(&self) -> bool {
        self.arch.in_interrupt()
    }
    fn arch_enter_lazy_mmu_mode(&self) {
        self.callback(false, true, || self.arch.arch_enter_lazy_mmu_mode());
    }
    fn arch_enter_lazy_mmu_mode_with_ptes(&self, named: Named) {
        self.callback(false, true, || self.arch.arch_enter_lazy_mmu_mode_with_ptes(self.arch.ptes(named)));
    }
    fn arch_leave_lazy_mmu_mode(&self) {
        self.callback(true, false, || self.arch.arch_leave_lazy_mmu_mode());
    }
    fn arch_flush_lazy_mmu_mode(&self) {
        self.callback(true, true, || {
            LabMmu.kernel().in_flush_hook.set(LabMmu.has(Mutant::FlushWithoutHash));
            self.arch.arch_flush_lazy_mmu_mode();
        });
    }
    fn warn(&self, warning: Warning) {
        self.arch.warn(warning);
    }
    fn bug(&self, warning: Warning) {
        self.arch.bug(warning);
    }
}

impl<B: BackEnd> DynBackEnd for Watched<B> {
    fn set(&self, entry: usize, value: usize) {
        // SAFETY: the entries stay.
        unsafe { self.arch.set_pte(LabMmu.pte(entry), value) };
    }
    fn clear_full(&self, entry: usize) -> usize {
        // SAFETY: the entries stay.
        unsafe { self.arch.ptep_get_and_clear_full(LabMmu.pte(entry)) }
    }
    fn protect(&self, entry: usize, value: usize) -> usize {
        // SAFETY: the entries stay.
        let old = unsafe { self.arch.ptep_modify_prot_start(LabMmu.pte(entry)) };
        // SAFETY: as above.
        unsafe { self.arch.ptep_modify_prot_commit(LabMmu.pte(entry), value | bits(old)) };
        old
    }
    fn age(&self, entry: usize) -> usize {
        // As ptep_test_and_clear_young does, which tells of the accessed bit only.
        // SAFETY: the entries stay.
        unsafe { self.arch.pte_update(LabMmu.pte(entry), LabMmu::pte_mkold) }
    }
    fn get(&self, entry: usize) -> usize {
        // SAFETY: the entries stay.
        unsafe { self.arch.ptep_get(LabMmu.pte(entry)) }
    }
    fn flush_tlb(&self) {
        self.arch.flush_tlb();
    }
    fn switch_out(&self, prev: usize) {
        self.arch.switch_out(prev);
    }
    fn switch_in(&self, next: usize) {
        self.arch.switch_in(next);
    }
    fn new_task(&self, task: usize) {
        self.arch.new_task(task);
    }
    fn is_idle(&self, kernel: &Kernel, cpu: usize) -> bool {
        self.arch.is_idle(kernel, cpu)
    }
    fn is_empty(&self, kernel: &Kernel, cpu: usize) -> bool {
        self.arch.is_empty(kernel, cpu)
    }
    fn is_to_invalidate(&self, kernel: &Kernel, cpu: usize, entry: usize) -> bool {
        self.arch.is_to_invalidate(kernel, cpu, entry)
    }
    fn is_poisoned(&self, entry: usize) -> bool {
        self.arch.is_poisoned(entry)
    }
    fn is_entered(&self, task: usize) -> bool {
        self.entered[task].peek() != 0
    }
}

/// The back end of an architecture.
pub(crate) fn place(machine: &Machine, arch: Arch, tasks: usize) -> Box<dyn DynBackEnd> {
    fn watched<B: BackEnd + 'static>(arch: B, entered: &'static [SimLocal<usize>]) -> Box<dyn DynBackEnd> {
        Box::new(Watched { arch, entered })
    }
    let entered = locals(machine, "entered", tasks);
    match arch {
        Arch::None => watched(Nothing, entered),
        Arch::Arm64 => watched(Arm64(LabMmu), entered),
        Arch::PowerpcHash | Arch::PowerpcRadix => watched(PowerpcHash::<_, BATCH>(LabMmu), entered),
        Arch::Sparc64 => watched(Sparc64::<_, BATCH>(LabMmu), entered),
        Arch::X1 => watched(Xen::<_, X1, QUEUE>::new(LabMmu), entered),
        Arch::X2 => watched(Xen::<_, X2, QUEUE>::new(LabMmu), entered),
        Arch::X3 => watched(Xen::<_, X3, QUEUE>::new(LabMmu), entered),
        Arch::X4 => watched(Xen::<_, X4, QUEUE>::new(LabMmu), entered),
        Arch::X5 => watched(Xen::<_, X5, QUEUE>::new(LabMmu), entered),
        Arch::S390 => watched(S390::<_, TABLE>(LabMmu), entered),
    }
}
