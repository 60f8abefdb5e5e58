//! [`LabMmu`]: the machine as the back ends see it, with batches and queues of two entries, so that small programs fill them.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use lazytlb_core::memory::{At, AtomicWord, Label, LocalWord, Memory, Ordering::Relaxed};
use lazytlb_lazy_mmu::backends::arm64::Arm64Kernel;
use lazytlb_lazy_mmu::backends::powerpc::{HashBatch, HashKernel};
use lazytlb_lazy_mmu::backends::s390::{PteCache, S390Kernel};
use lazytlb_lazy_mmu::backends::sparc64::{SparcKernel, TlbBatch};
use lazytlb_lazy_mmu::backends::xen::{Operation, XenCpu, XenKernel, XenTask};
use lazytlb_lazy_mmu::backends::{MmuKernel, Pte};
use lazytlb_lazy_mmu::{Generation, Warning};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};

/// How many entries a batch of powerpc's and sparc64's holds.
pub const BATCH: usize = 2;
/// How many hypercalls Xen's queue holds.
pub const QUEUE: usize = 2;
/// How many entries there are, and s390's cache holds.
pub const TABLE: usize = 4;

/// A planted bug of the kernel around a back end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Sections do not disable preemption (powerpc before 2022, sparc64 before 2025).
    Preemptible,
    /// Interrupts are let in: nobody asks whether the caller is in one (v4 without its later patch, arm64 before June 2025).
    InterruptsLetIn,
    /// A task that has not run yet is not paused, where the hooks at a switch resume who comes ([`Arch::X5`](crate::Arch::X5)).
    NewTasksNotPaused,
}

/// Forgets for how long structures are placed.
pub(crate) fn placed<T>(placed: &mut [T]) -> &'static [T] {
    let placed: *const [T] = placed;
    // SAFETY: in the arena, which is kept as long as the machine runs.
    unsafe { &*placed }
}

/// What the kernel keeps for each task.
pub(crate) struct TaskWords<G: Generation + 'static> {
    pub(crate) state: G,
    pub(crate) pending: SimLocal<usize>,
    pub(crate) xen: XenTask<LabMmu<G>>,
}

/// What it keeps for each CPU.
pub(crate) struct CpuWords<G: Generation + 'static> {
    pub(crate) hash: HashBatch<LabMmu<G>, BATCH>,
    pub(crate) tlb: TlbBatch<LabMmu<G>, BATCH>,
    pub(crate) xen: XenCpu<LabMmu<G>, QUEUE>,
    pub(crate) cache: PteCache<LabMmu<G>, TABLE>,
}

/// All that the kernel keeps, in the arena.
pub(crate) struct Words<G: Generation + 'static> {
    pub(crate) tasks: &'static [TaskWords<G>],
    pub(crate) cpus: &'static [CpuWords<G>],
    pub(crate) entries: &'static [SimWord<usize>],
    pub(crate) flaw: Option<Flaw>,
}

impl<G: Generation> Words<G> {
    pub(crate) fn place(machine: &Machine, tasks: usize, cpus: usize, flaw: Option<Flaw>) -> Words<G> {
        let task = |_| TaskWords { state: G::default(), pending: LocalWord::new(0), xen: XenTask::default() };
        let cpu = |_| CpuWords {
            hash: HashBatch::default(),
            tlb: TlbBatch::default(),
            xen: XenCpu::default(),
            cache: PteCache::default(),
        };
        Words {
            tasks: placed(machine.place_slice("task_struct", ObjectKind::Task, tasks, task)),
            cpus: placed(machine.place_slice("percpu", ObjectKind::PerCpu, cpus, cpu)),
            entries: placed(machine.place_slice("pte", ObjectKind::Table, TABLE, |_| AtomicWord::new(0))),
            flaw,
        }
    }
}

thread_local! {
    /// The words of the world that runs on this thread.
    static WORDS: Cell<*const ()> = const { Cell::new(core::ptr::null()) };
}

/// Runs `f` with these words as the kernel's.
pub(crate) fn with_words<G: Generation, R>(words: &Words<G>, f: impl FnOnce() -> R) -> R {
    let before = WORDS.replace(core::ptr::from_ref(words).cast());
    let result = f();
    WORDS.set(before);
    result
}

/// The kernel of the world that runs on this thread.
#[derive(Debug)]
pub struct LabMmu<G>(PhantomData<fn() -> G>);

impl<G> LabMmu<G> {
    /// The handle.
    pub const NEW: Self = LabMmu(PhantomData);
}

impl<G> Clone for LabMmu<G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G> Copy for LabMmu<G> {}

impl<G: Generation + 'static> LabMmu<G> {
    pub(crate) fn words(&self) -> &'static Words<G> {
        let words: *const Words<G> = WORDS.get().cast();
        // SAFETY: `with_words` has set it, for a world of this generation, and keeps it until the machine has stopped.
        unsafe { words.as_ref() }.expect("a world runs")
    }

    pub(crate) fn task(&self) -> &'static TaskWords<G> {
        &self.words().tasks[Machine::with(Machine::current_task).index()]
    }

    pub(crate) fn cpu(&self) -> &'static CpuWords<G> {
        &self.words().cpus[Machine::with(Machine::this_cpu)]
    }

    /// What an entry holds; a look, and no step.
    pub(crate) fn look_at(&self, entry: usize) -> usize {
        Machine::with(|machine| machine.inspect(|| self.words().entries[entry].load(Relaxed)))
    }

    pub(crate) fn pte(&self, entry: usize) -> Pte<Self> {
        Pte { mm: 1, addr: entry, ptep: NonNull::from(&self.words().entries[entry]) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.words().flaw == Some(flaw)
    }
}

impl<G> Memory for LabMmu<G> {
    type AtomicUsize = SimWord<usize>;
    type AtomicPtr<T> = SimWord<*mut T>;
    type LocalUsize = SimLocal<usize>;
    type LocalPtr<T> = SimLocal<*mut T>;

    fn fence(self, at: impl Into<At>) {
        Sim.fence(at);
    }
    fn spin_hint(self) {
        Sim.spin_hint();
    }
}

impl<G: Generation + 'static> MmuKernel for LabMmu<G> {
    fn debug_vm(self) -> bool {
        true
    }
    fn in_interrupt(self) -> bool {
        let context = Machine::with(Machine::context);
        (context.in_nmi || context.in_hardirq || context.in_softirq) && !self.has(Flaw::InterruptsLetIn)
    }
    fn is_lazy_mmu_mode_active(self) -> bool {
        !self.in_interrupt() && self.task().state.is_on()
    }
    fn preempt_disable(self) {
        if !self.has(Flaw::Preemptible) {
            Machine::with(Machine::preempt_disable);
        }
    }
    fn preempt_enable(self) {
        if !self.has(Flaw::Preemptible) {
            Machine::with(Machine::preempt_enable);
        }
    }
    fn warn(self, warning: Warning) {
        Machine::with(|machine| machine.fail(Kind::Warning, warning.to_string()));
    }
    fn bug(self, warning: Warning) {
        Machine::with(|machine| machine.fail(Kind::Warning, format!("kernel BUG: {warning}")));
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

impl<G: Generation + 'static> Arm64Kernel for LabMmu<G> {
    fn pending(&self) -> &SimLocal<usize> {
        &self.task().pending
    }
    fn emit_pte_barriers(self) {}
    fn is_valid_kernel_pte(value: usize) -> bool {
        Self::pte_present(value)
    }
}

impl<G: Generation + 'static> HashKernel<BATCH> for LabMmu<G> {
    fn radix_enabled(self) -> bool {
        false
    }
    fn hash_batch(&self) -> &HashBatch<Self, BATCH> {
        &self.cpu().hash
    }
    fn is_hashed(value: usize) -> bool {
        Self::pte_present(value)
    }
    fn unhashed(value: usize) -> usize {
        value
    }
    fn flush_hash_page(self, _mm: usize, _kind: usize, _entry: [usize; 2]) {}
    fn flush_hash_range(self, _batch: &HashBatch<Self, BATCH>) {}
}

impl<G: Generation + 'static> SparcKernel<BATCH> for LabMmu<G> {
    fn tlb_batch(&self) -> &TlbBatch<Self, BATCH> {
        &self.cpu().tlb
    }
    fn is_exec(_value: usize) -> bool {
        false
    }
    fn has_context(self, _mm: usize) -> bool {
        true
    }
    fn flush_tsb(self, _mm: usize, _addrs: impl Iterator<Item = usize>) {}
    fn global_flush_tlb_page(self, _mm: usize, _addr: usize) {}
    fn smp_flush_tlb_pending(self, _batch: &TlbBatch<Self, BATCH>) {}
}

impl<G: Generation + 'static> XenKernel<QUEUE> for LabMmu<G> {
    type IrqFlags = bool;

    fn xen_cpu(&self) -> &XenCpu<Self, QUEUE> {
        &self.cpu().xen
    }
    fn local_irq_save(self) -> bool {
        Machine::with(|machine| machine.irq_save(Label::NONE))
    }
    fn local_irq_restore(self, were_on: bool) {
        Machine::with(|machine| machine.irq_restore(were_on));
    }
    unsafe fn mmu_update(self, ptep: NonNull<SimWord<usize>>, value: usize) {
        // SAFETY: the caller's entry.
        unsafe { ptep.as_ref() }.store(value, Relaxed);
    }
    unsafe fn multicall(self, queue: &XenCpu<Self, QUEUE>) {
        for operation in queue.operations() {
            if let Operation::Update(ptep, value) = operation {
                // SAFETY: the caller's entries.
                unsafe { self.mmu_update(ptep, value) };
            }
        }
    }
}

impl<G: Generation + 'static> S390Kernel<TABLE> for LabMmu<G> {
    const PAGE_SIZE: usize = 1;
    const PTE_NEVER: usize = usize::MAX;

    fn pte_cache(&self) -> &PteCache<Self, TABLE> {
        &self.cpu().cache
    }
    unsafe fn ipte_range(self, first: Pte<Self>, count: usize) {
        for entry in first.addr..first.addr + count {
            // SAFETY: one of its own entries.
            unsafe { self.pte(entry).store(Self::PTE_NONE) };
        }
    }
}
