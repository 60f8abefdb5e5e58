//! A machine of one CPU with page tables in this process' memory, for every back end of lazy MMU mode: what they ask of hardware is
//! written down.
//!
//! [`ToyMmu`] is a handle; each thread has a machine of its own, which [`ToyMmu::reset`] makes anew.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use lazytlb_core::memory::{At, Memory};
use lazytlb_core::native::{Local, Native};
use lazytlb_lazy_mmu::Warning;
use lazytlb_lazy_mmu::backends::arm64::Arm64Kernel;
use lazytlb_lazy_mmu::backends::powerpc::{HashBatch, HashKernel};
use lazytlb_lazy_mmu::backends::s390::{PteCache, PteRange, S390Kernel};
use lazytlb_lazy_mmu::backends::sparc64::{SparcKernel, TlbBatch};
use lazytlb_lazy_mmu::backends::xen::{Operation, XenCpu, XenKernel, XenTask};
use lazytlb_lazy_mmu::backends::{MmuKernel, Pte};

/// The entry was used since the bit was cleared.
pub const YOUNG: usize = 1 << 1;
/// The page may be written.
pub const WRITE: usize = 1 << 2;
/// A bit of an entry: the page was written, as hardware tells.
pub const DIRTY: usize = 1 << 3;

/// How many entries a batch of powerpc's and sparc64's holds.
pub const BATCH: usize = 192;
/// How many hypercalls Xen's queue holds.
pub const QUEUE: usize = 32;
/// How many entries a table has, and s390's cache.
pub const TABLE: usize = 256;

/// What hardware, or the hypervisor, was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A pair of barriers.
    Barriers,
    /// One entry taken out of the hash table and the TLBs, or so many.
    HashFlush(usize),
    /// So many addresses taken out of the software's cache of translations.
    TsbFlush(usize),
    /// So many addresses taken out of the TLBs of all CPUs.
    TlbFlush(usize),
    /// A hypercall that does so many operations.
    Hypercall(usize),
    /// An instruction that invalidates so many entries.
    Ipte(usize),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Barriers => f.write_str("barriers"),
            Op::HashFlush(n) => write!(f, "hash flush {n}"),
            Op::TsbFlush(n) => write!(f, "TSB flush {n}"),
            Op::TlbFlush(n) => write!(f, "TLB flush {n}"),
            Op::Hypercall(n) => write!(f, "hypercall {n}"),
            Op::Ipte(n) => write!(f, "IPTE {n}"),
        }
    }
}

/// The machine of a thread.
#[derive(Default)]
struct Machine {
    tables: RefCell<BTreeMap<usize, &'static [AtomicUsize]>>,
    ops: RefCell<Vec<Op>>,
    warnings: RefCell<Vec<String>>,
    stopped: Cell<bool>,
    interrupts: Cell<u32>,
    preempt_count: Cell<i32>,
    is_active: Cell<bool>,
    is_radix: Cell<bool>,
    pending: Local<AtomicUsize>,
    hash: HashBatch<ToyMmu, BATCH>,
    tlb: TlbBatch<ToyMmu, BATCH>,
    xen: XenCpu<ToyMmu, QUEUE>,
    xen_tasks: [XenTask<ToyMmu>; 2],
    cache: PteCache<ToyMmu, TABLE>,
}

thread_local! {
    static MACHINE: Cell<&'static Machine> = Cell::new(Box::leak(Box::default()));
}

/// The machine of this thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToyMmu;

impl ToyMmu {
    fn machine(self) -> &'static Machine {
        MACHINE.get()
    }

    /// A new machine. The old one's memory stays, for whoever has a reference into it.
    pub fn reset(self) {
        MACHINE.set(Box::leak(Box::default()));
    }

    /// The entry of an address; an address is the number of a page. The mm is 1, not the kernel's.
    pub fn pte(self, addr: usize) -> Pte<ToyMmu> {
        let mut tables = self.machine().tables.borrow_mut();
        let new = || &*Vec::leak((0..TABLE).map(|_| AtomicUsize::new(0)).collect());
        let table = tables.entry(addr / TABLE).or_insert_with(new);
        Pte { mm: 1, addr, ptep: NonNull::from(&table[addr % TABLE]) }
    }

    /// The entries of some addresses, if one table has them all.
    pub fn range(self, addrs: std::ops::Range<usize>) -> Option<PteRange<ToyMmu>> {
        let in_one = !addrs.is_empty() && addrs.start / TABLE == (addrs.end - 1) / TABLE;
        let Pte { mm, addr, ptep } = self.pte(addrs.start);
        // SAFETY: they are in one table, and the machine's tables stay.
        in_one.then(|| unsafe { PteRange::new(mm, addr..addrs.end, ptep) })
    }

    /// Says whether the current task has the mode on: the machine knows nothing of the generic layer.
    pub fn set_active(self, is_active: bool) {
        self.machine().is_active.set(is_active);
    }

    /// An interrupt begins.
    pub fn irq_enter(self) {
        self.machine().interrupts.set(self.machine().interrupts.get() + 1);
    }

    /// It ends.
    pub fn irq_exit(self) {
        self.machine().interrupts.set(self.machine().interrupts.get() - 1);
    }

    /// Makes the machine one without a hash table.
    pub fn set_radix(self, is_radix: bool) {
        self.machine().is_radix.set(is_radix);
    }

    /// The kernel warns of something that is not lazy MMU mode's.
    pub fn warn_of(self, text: &str) {
        self.machine().warnings.borrow_mut().push(text.to_owned());
    }

    /// How often preemption is disabled.
    pub fn preempt_count(self) -> i32 {
        self.machine().preempt_count.get()
    }

    /// What a task keeps for Xen.
    pub fn xen_task(self, task: usize) -> &'static XenTask<ToyMmu> {
        &self.machine().xen_tasks[task]
    }

    /// What hardware was asked for since the last time.
    pub fn ops(self) -> Vec<Op> {
        self.machine().ops.take()
    }

    /// What was warned of since the last time.
    pub fn warnings(self) -> Vec<String> {
        self.machine().warnings.take()
    }

    /// Whether the kernel has stopped the machine.
    pub fn is_stopped(self) -> bool {
        self.machine().stopped.get()
    }

    fn did(self, op: Op) {
        self.machine().ops.borrow_mut().push(op);
    }
}

impl Memory for ToyMmu {
    type AtomicUsize = AtomicUsize;
    type AtomicPtr<T> = AtomicPtr<T>;
    type LocalUsize = Local<AtomicUsize>;
    type LocalPtr<T> = Local<AtomicPtr<T>>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }
    fn spin_hint(self) {
        Native.spin_hint();
    }
}

impl MmuKernel for ToyMmu {
    fn debug_vm(self) -> bool {
        true
    }
    fn in_interrupt(self) -> bool {
        self.machine().interrupts.get() > 0
    }
    fn is_lazy_mmu_mode_active(self) -> bool {
        !self.in_interrupt() && self.machine().is_active.get()
    }
    fn preempt_disable(self) {
        self.machine().preempt_count.set(self.preempt_count() + 1);
    }
    fn preempt_enable(self) {
        self.machine().preempt_count.set(self.preempt_count() - 1);
    }
    fn warn(self, warning: Warning) {
        if !self.is_stopped() {
            self.machine().warnings.borrow_mut().push(warning.to_string());
        }
    }
    fn bug(self, warning: Warning) {
        self.machine().warnings.borrow_mut().push(format!("BUG: {warning}"));
        self.machine().stopped.set(true);
    }
    fn pte_present(value: usize) -> bool {
        value != 0
    }
    fn pte_mkold(value: usize) -> usize {
        value & !YOUNG
    }
    fn pte_wrprotect(value: usize) -> usize {
        value & !WRITE
    }
}

impl Arm64Kernel for ToyMmu {
    fn pending(&self) -> &Self::LocalUsize {
        &self.machine().pending
    }
    fn emit_pte_barriers(self) {
        self.did(Op::Barriers);
    }
    /// All of its entries stand for the kernel's.
    fn is_valid_kernel_pte(value: usize) -> bool {
        Self::pte_present(value)
    }
}

impl HashKernel<BATCH> for ToyMmu {
    fn radix_enabled(self) -> bool {
        self.machine().is_radix.get()
    }
    fn hash_batch(&self) -> &HashBatch<Self, BATCH> {
        &self.machine().hash
    }
    /// Each is used at once, where there is a hash table.
    fn is_hashed(value: usize) -> bool {
        Self::pte_present(value) && !ToyMmu.radix_enabled()
    }
    fn unhashed(value: usize) -> usize {
        value
    }
    fn flush_hash_page(self, _mm: usize, _kind: usize, _entry: [usize; 2]) {
        self.did(Op::HashFlush(1));
    }
    fn flush_hash_range(self, batch: &HashBatch<Self, BATCH>) {
        self.did(Op::HashFlush(batch.len()));
    }
}

impl SparcKernel<BATCH> for ToyMmu {
    fn tlb_batch(&self) -> &TlbBatch<Self, BATCH> {
        &self.machine().tlb
    }
    fn is_exec(_value: usize) -> bool {
        false
    }
    fn has_context(self, _mm: usize) -> bool {
        true
    }
    fn flush_tsb(self, _mm: usize, addrs: impl Iterator<Item = usize>) {
        self.did(Op::TsbFlush(addrs.count()));
    }
    fn global_flush_tlb_page(self, _mm: usize, _addr: usize) {
        self.did(Op::TlbFlush(1));
    }
    fn smp_flush_tlb_pending(self, batch: &TlbBatch<Self, BATCH>) {
        self.did(Op::TlbFlush(batch.len()));
    }
}

impl XenKernel<QUEUE> for ToyMmu {
    type IrqFlags = ();

    fn xen_cpu(&self) -> &XenCpu<Self, QUEUE> {
        &self.machine().xen
    }
    fn local_irq_save(self) {}
    fn local_irq_restore(self, (): ()) {}
    unsafe fn mmu_update(self, ptep: NonNull<AtomicUsize>, value: usize) {
        self.did(Op::Hypercall(1));
        // SAFETY: the caller's entry.
        unsafe { ptep.as_ref() }.store(value, Relaxed);
    }
    unsafe fn multicall(self, queue: &XenCpu<Self, QUEUE>) {
        self.did(Op::Hypercall(queue.len()));
        for operation in queue.operations() {
            match operation {
                // SAFETY: the caller's entries.
                Operation::Update(ptep, value) => unsafe { ptep.as_ref() }.store(value, Relaxed),
                Operation::UpdatePreservingBits(ptep, value) => {
                    // SAFETY: as above.
                    let entry = unsafe { ptep.as_ref() };
                    entry.store(value | entry.load(Relaxed) & (YOUNG | DIRTY), Relaxed);
                }
                Operation::FlushAddr(_) => self.did(Op::TlbFlush(1)),
                Operation::FlushAll => self.did(Op::TlbFlush(usize::MAX)),
            }
        }
    }
}

impl S390Kernel<TABLE> for ToyMmu {
    const PAGE_SIZE: usize = 1;
    const PTE_NEVER: usize = usize::MAX;

    fn pte_cache(&self) -> &PteCache<Self, TABLE> {
        &self.machine().cache
    }
    unsafe fn ipte_range(self, first: Pte<Self>, count: usize) {
        self.did(Op::Ipte(count));
        for offset in 0..count {
            let pte = self.pte(first.addr + offset);
            // SAFETY: its own table.
            unsafe { pte.store(Self::PTE_NONE) };
        }
    }
}
