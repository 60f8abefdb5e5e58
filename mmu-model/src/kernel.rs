//! [`LabMmu`]: the machine as the back ends see it, with batches and queues of two entries, so that small programs fill them.

use core::cell::Cell;
use core::ptr::NonNull;

use lazytlb_core::memory::{At, AtomicWord, Label, LocalWord, Memory, Ordering::Relaxed};
use lazytlb_lazy_mmu::Warning;
use lazytlb_lazy_mmu::backends::arm64::Arm64Kernel;
use lazytlb_lazy_mmu::backends::powerpc::{HashBatch, HashKernel};
use lazytlb_lazy_mmu::backends::s390::{PteCache, S390Kernel};
use lazytlb_lazy_mmu::backends::sparc64::{SparcKernel, TlbBatch};
use lazytlb_lazy_mmu::backends::xen::{Operation, XenCpu, XenKernel, XenTask};
use lazytlb_lazy_mmu::backends::{MmuKernel, Pte};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};

use crate::calls::Calls;
use crate::device::Devices;
use crate::hardware::{ACCESSED, Hardware, bits};
use crate::names::{Arch, Mutant};
use crate::program::Program;
use crate::rules::{Books, Rule, broken};

/// How many entries a batch of powerpc's and sparc64's holds.
pub(crate) const BATCH: usize = 2;
/// How many hypercalls Xen's queue holds.
pub(crate) const QUEUE: usize = 2;
/// How many entries a program can have, and s390's cache holds.
pub(crate) const TABLE: usize = 4;

/// Forgets for how long structures are placed.
pub(crate) fn placed<T>(placed: &mut [T]) -> &'static [T] {
    let placed: *const [T] = placed;
    // SAFETY: in the arena, which is kept as long as the machine runs.
    unsafe { &*placed }
}

/// Words that only their task or CPU writes, zero at the start.
pub(crate) fn locals(machine: &Machine, name: &'static str, count: usize) -> &'static [SimLocal<usize>] {
    placed(machine.place_slice(name, ObjectKind::Other, count, |_| LocalWord::new(0)))
}

/// Words that several write, zero at the start.
pub(crate) fn shared(machine: &Machine, name: &'static str, count: usize) -> &'static [SimWord<usize>] {
    placed(machine.place_slice(name, ObjectKind::Other, count, |_| AtomicWord::new(0)))
}

/// What back ends keep for each task.
pub(crate) struct TaskWords {
    pub(crate) pending: SimLocal<usize>,
    pub(crate) xen: XenTask<LabMmu>,
}

/// What they keep for each CPU.
pub(crate) struct CpuWords {
    pub(crate) hash: HashBatch<LabMmu, BATCH>,
    pub(crate) tlb: TlbBatch<LabMmu, BATCH>,
    pub(crate) xen: XenCpu<LabMmu, QUEUE>,
    pub(crate) cache: PteCache<LabMmu, TABLE>,
}

/// All that the kernel has.
pub(crate) struct Kernel {
    pub(crate) arch: Arch,
    pub(crate) mutant: Option<Mutant>,
    /// The state of each task, idle tasks included.
    pub(crate) states: Vec<&'static dyn Calls>,
    pub(crate) tasks: &'static [TaskWords],
    pub(crate) cpus: &'static [CpuWords],
    pub(crate) hardware: Hardware,
    pub(crate) books: Books,
    /// Who else translates by the page tables.
    pub(crate) devices: Devices,
    /// The flush hook runs, and is about to ask whether there is a hash table: planted, it does not.
    pub(crate) in_flush_hook: Cell<bool>,
    /// The table that each entry is in.
    tables: Vec<usize>,
    /// The task that each CPU is on its way from, while the back end's hook runs on the other's stack; one more, 0 if it is on none.
    pub(crate) leaving: &'static [SimLocal<usize>],
    /// How often each task has disabled bottom halves.
    pub(crate) bh: &'static [SimLocal<usize>],
}

impl Kernel {
    pub(crate) fn place(
        machine: &Machine,
        program: &Program,
        arch: Arch,
        mutant: Option<Mutant>,
        states: Vec<&'static dyn Calls>,
    ) -> Kernel {
        let tasks = states.len();
        let task = |_| TaskWords { pending: LocalWord::new(0), xen: XenTask::default() };
        let cpu = |_| CpuWords {
            hash: HashBatch::default(),
            tlb: TlbBatch::default(),
            xen: XenCpu::default(),
            cache: PteCache::default(),
        };
        let hardware = Hardware::place(machine, program, arch);
        let books = Books::place(machine, program, tasks, &hardware);
        Kernel {
            arch,
            mutant,
            states,
            tasks: placed(machine.place_slice("task_struct", ObjectKind::Task, tasks, task)),
            cpus: placed(machine.place_slice("percpu", ObjectKind::PerCpu, program.cpus, cpu)),
            hardware,
            books,
            devices: Devices::place(machine, program, tasks),
            in_flush_hook: Cell::new(false),
            tables: program.tables.clone(),
            leaving: locals(machine, "leaving", program.cpus),
            bh: locals(machine, "bh_disabled", tasks),
        }
    }
}

thread_local! {
    /// The kernel of the machine that runs on this thread.
    static KERNEL: Cell<*const Kernel> = const { Cell::new(core::ptr::null()) };
}

impl Kernel {
    /// Runs `f` with this as the kernel.
    pub(crate) fn runs<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = KERNEL.replace(self);
        let result = f();
        KERNEL.set(before);
        result
    }
}

/// The handle of the kernel that runs on this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LabMmu;

/// The task that runs here.
pub(crate) fn this_task() -> usize {
    Machine::with(Machine::current_task).index()
}

/// The CPU that runs this.
pub(crate) fn this_cpu() -> usize {
    Machine::with(Machine::this_cpu)
}

impl LabMmu {
    pub(crate) fn kernel(&self) -> &'static Kernel {
        // SAFETY: `Kernel::runs` has set it, and keeps it until the machine has stopped.
        unsafe { KERNEL.get().as_ref() }.expect("a kernel runs")
    }

    pub(crate) fn hardware(&self) -> &'static Hardware {
        &self.kernel().hardware
    }

    fn task(&self) -> &'static TaskWords {
        &self.kernel().tasks[this_task()]
    }

    /// This CPU's words: of whoever keeps the CPU while they are used.
    fn cpu(&self) -> &'static CpuWords {
        let context = Machine::with(Machine::context);
        if !(context.preempt_disabled || context.irqs_disabled) {
            broken(Rule::R18);
        }
        &self.kernel().cpus[this_cpu()]
    }

    pub(crate) fn pte(&self, entry: usize) -> Pte<Self> {
        // sparc64 has a use for the lowest bit of an address.
        let addr = if self.kernel().arch == Arch::Sparc64 { 2 * entry } else { entry };
        // An mm for each table. 0 would be the kernel's own, whose entries sparc64 does not batch.
        let mm = 1 + self.kernel().tables[entry];
        Pte { mm, addr, ptep: NonNull::from(&self.hardware().entries[entry]) }
    }

    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.kernel().mutant == Some(mutant)
    }

    /// Whether the caller is in an interrupt, or has bottom halves disabled, whatever the kernel thinks.
    pub(crate) fn is_in_interrupt(&self) -> bool {
        let context = Machine::with(Machine::context);
        let in_irq = context.in_nmi || context.in_hardirq || context.in_softirq;
        in_irq || self.kernel().bh[this_task()].peek() > 0
    }

    /// This CPU's batch of sparc64's, looked at by the CPUs that it is about.
    pub(crate) fn batch_of(&self, cpu: usize) -> &'static TlbBatch<Self, BATCH> {
        &self.kernel().cpus[cpu].tlb
    }
}

impl Memory for LabMmu {
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

impl MmuKernel for LabMmu {
    fn debug_vm(self) -> bool {
        true
    }
    fn in_interrupt(self) -> bool {
        self.is_in_interrupt() && !self.has(Mutant::InterruptsLetIn)
    }
    fn is_lazy_mmu_mode_active(self) -> bool {
        !self.in_interrupt() && self.kernel().states[this_task()].is_on()
    }
    fn preempt_disable(self) {
        if !self.has(Mutant::Preemptible) {
            Machine::with(Machine::preempt_disable);
        }
    }
    fn preempt_enable(self) {
        if !self.has(Mutant::Preemptible) {
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
        value & !ACCESSED
    }
    fn pte_wrprotect(value: usize) -> usize {
        value
    }
}

impl Arm64Kernel for LabMmu {
    fn pending(&self) -> &SimLocal<usize> {
        &self.task().pending
    }
    fn emit_pte_barriers(self) {
        self.hardware().is_asked();
        self.kernel().books.barriers(this_task());
    }
    fn is_valid_kernel_pte(value: usize) -> bool {
        Self::pte_present(value)
    }
}

impl HashKernel<BATCH> for LabMmu {
    fn radix_enabled(self) -> bool {
        self.kernel().arch == Arch::PowerpcRadix && !self.kernel().in_flush_hook.replace(false)
    }
    fn hash_batch(&self) -> &HashBatch<Self, BATCH> {
        &self.cpu().hash
    }
    fn is_hashed(value: usize) -> bool {
        Self::pte_present(value) && !LabMmu.radix_enabled()
    }
    fn unhashed(value: usize) -> usize {
        value
    }
    fn flush_hash_page(self, _mm: usize, _kind: usize, [addr, _]: [usize; 2]) {
        self.hardware().invalidate([addr]);
    }
    fn flush_hash_range(self, batch: &HashBatch<Self, BATCH>) {
        self.hardware().invalidate(batch.entries(batch.len()).map(|[addr, _]| addr));
    }
}

impl SparcKernel<BATCH> for LabMmu {
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
    fn global_flush_tlb_page(self, _mm: usize, addr: usize) {
        self.hardware().invalidate([addr / 2]);
    }
    fn smp_flush_tlb_pending(self, batch: &TlbBatch<Self, BATCH>) {
        self.hardware().cross_call(batch.len(), self.has(Mutant::NotAwaited));
    }
}

impl XenKernel<QUEUE> for LabMmu {
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
            match operation {
                // SAFETY: the caller's entries.
                Operation::Update(ptep, value) => unsafe { self.mmu_update(ptep, value) },
                Operation::UpdatePreservingBits(ptep, value) => {
                    let pte = Pte::<Self> { mm: 0, addr: 0, ptep };
                    // SAFETY: as above.
                    unsafe { pte.update(|now| value | bits(now)) };
                }
                Operation::FlushAddr(addr) => self.hardware().flush_tlb([addr]),
                Operation::FlushAll => self.hardware().flush_tlb(0..TABLE),
            }
        }
    }
}

impl S390Kernel<TABLE> for LabMmu {
    const PAGE_SIZE: usize = 1;
    const PTE_NEVER: usize = usize::MAX;

    fn pte_cache(&self) -> &PteCache<Self, TABLE> {
        &self.cpu().cache
    }
    unsafe fn ipte_range(self, first: Pte<Self>, count: usize) {
        self.hardware().is_asked();
        for entry in first.addr..first.addr + count {
            // SAFETY: one of its own entries.
            unsafe { self.pte(entry).store(Self::PTE_NONE) };
        }
        self.hardware().invalidate(first.addr..first.addr + count);
    }
}
