//! x86 as a Xen PV guest: a queue of hypercalls.
//!
//! Source: 8965c1c0950d (2007), b407fc57b815 and 7fd7d83d4991 (2009, the hooks at the switch), 49147beb0ccb (2023, nesting) and its revert
//! c36549ff8d84, 291b3abed657 (Linux 7.0, hooks that ask the generic state), 4594437880ce (7.1-rc4, calls that may come
//! twice), 20260526150514.129330 (May 2026, no state of its own).

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{LocalWord, Memory};

use super::{MmuKernel, Pte, PteAccess, kernels_part};
use crate::arch::{LazyMmuArch, Warning};
use crate::state::LazyMmuState;

/// A hypercall in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<T> {
    /// Stores a value into an entry.
    Update(NonNull<T>, usize),
    /// The same, but accessed and dirty bits that are set in the entry by then stay (`MMU_PT_UPDATE_PRESERVE_AD`).
    UpdatePreservingBits(NonNull<T>, usize),
    /// Takes an address out of the TLBs.
    FlushAddr(usize),
    /// Takes everything out of the TLBs.
    FlushAll,
}

/// A CPU's queue of up to `N` hypercalls, and what it is used for. Linux has 32.
///
/// Context: interrupts off, of the CPU that owns it.
pub struct XenCpu<M: Memory, const N: usize> {
    mode: M::LocalUsize,
    /// How often the mode was entered again ([`X2`]).
    nested: M::LocalUsize,
    count: M::LocalUsize,
    entries: [M::LocalPtr<M::AtomicUsize>; N],
    values: [M::LocalUsize; N],
}

/// The queue is not in use.
const MODE_NONE: usize = 0;
/// A section uses it.
const MODE_MMU: usize = 1;
/// A context switch uses it, for descriptors and registers.
const MODE_CPU: usize = 2;

/// In the lowest bit of an entry's address, as Xen itself has it: the update keeps accessed and dirty bits.
const PRESERVE_BITS: usize = 1;

/// In the place of an entry's value, where there is no entry: the operation is a flush of the address beside it.
const FLUSH_ALL: usize = usize::MAX;

impl<M: Memory, const N: usize> Default for XenCpu<M, N> {
    fn default() -> Self {
        let word = || LocalWord::new(0);
        XenCpu {
            mode: word(),
            nested: word(),
            count: word(),
            entries: core::array::from_fn(|_| LocalWord::new(null_mut())),
            values: core::array::from_fn(|_| word()),
        }
    }
}

impl<M: Memory, const N: usize> fmt::Debug for XenCpu<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mode {}, {} queued", self.mode.get(), self.count.get())
    }
}

impl<M: Memory, const N: usize> XenCpu<M, N> {
    /// A queue of these words; `const`, for statics.
    ///
    /// # Safety
    /// All are zero or null at the start: what is queued is stored through the pointers.
    pub const unsafe fn from_parts(
        mode: M::LocalUsize,
        nested: M::LocalUsize,
        count: M::LocalUsize,
        entries: [M::LocalPtr<M::AtomicUsize>; N],
        values: [M::LocalUsize; N],
    ) -> Self {
        XenCpu { mode, nested, count, entries, values }
    }

    /// How many hypercalls are queued.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether neither a section nor a switch uses the queue: what must hold where another task begins to run.
    pub fn is_idle(&self) -> bool {
        self.mode.get() == MODE_NONE && self.nested.get() == 0 && self.is_empty()
    }

    fn push(&self, operation: Operation<M::AtomicUsize>) {
        let count = self.count.get();
        let (entry, value) = match operation {
            Operation::Update(ptep, value) => (ptep.as_ptr(), value),
            Operation::UpdatePreservingBits(ptep, value) => {
                (ptep.as_ptr().map_addr(|addr| addr | PRESERVE_BITS), value)
            }
            Operation::FlushAddr(addr) => (null_mut(), addr),
            Operation::FlushAll => (null_mut(), FLUSH_ALL),
        };
        self.entries[count].set(entry);
        self.values[count].set(value);
        self.count.set(count + 1);
    }

    /// What is queued, in order.
    pub fn operations(&self) -> impl Iterator<Item = Operation<M::AtomicUsize>> + '_ {
        let queued = self.entries.iter().zip(&self.values).take(self.len());
        queued.map(|(entry, value)| {
            let (tagged, value) = (entry.get(), value.get());
            match NonNull::new(tagged.map_addr(|addr| addr & !PRESERVE_BITS)) {
                Some(ptep) if ptep.as_ptr() != tagged => Operation::UpdatePreservingBits(ptep, value),
                Some(ptep) => Operation::Update(ptep, value),
                None if value == FLUSH_ALL => Operation::FlushAll,
                None => Operation::FlushAddr(value),
            }
        })
    }
}

/// What a task keeps: that it was in a section when its CPU was taken ([`X1`], [`X2`]; `TIF_LAZY_MMU_UPDATES`).
pub struct XenTask<M: Memory> {
    was_lazy: M::LocalUsize,
}

impl<M: Memory> Default for XenTask<M> {
    fn default() -> Self {
        XenTask { was_lazy: LocalWord::new(0) }
    }
}

impl<M: Memory> XenTask<M> {
    /// A new task's, whose word is zero; `const`, for statics.
    pub const fn from_parts(was_lazy: M::LocalUsize) -> Self {
        XenTask { was_lazy }
    }
}

impl<M: Memory> fmt::Debug for XenTask<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "was lazy: {}", self.was_lazy.get() != 0)
    }
}

/// What such a machine has beside the common.
pub trait XenKernel<const N: usize>: MmuKernel {
    /// What [`local_irq_save`](Self::local_irq_save) remembers.
    type IrqFlags;

    /// This CPU's queue. Context: preemption off.
    fn xen_cpu(&self) -> &XenCpu<Self, N>;

    /// Disables interrupts, and says what they were.
    fn local_irq_save(self) -> Self::IrqFlags;

    /// Puts them back.
    fn local_irq_restore(self, flags: Self::IrqFlags);

    /// One hypercall that stores a value into an entry (`HYPERVISOR_mmu_update`).
    ///
    /// # Safety
    /// The entry is there.
    unsafe fn mmu_update(self, ptep: NonNull<Self::AtomicUsize>, value: usize);

    /// One hypercall that does all that is queued, in order (`HYPERVISOR_multicall`). Context: interrupts off.
    ///
    /// # Safety
    /// The entries are there.
    unsafe fn multicall(self, queue: &XenCpu<Self, N>);
}

/// What the hooks at a switch ask of a task's generic state, and do to it.
pub trait SwitchState {
    /// Whether the task has the mode on.
    fn is_on(&self) -> bool;
    /// [`LazyMmuState::task_lazy_mmu_mode_pause`].
    fn pause<A: LazyMmuArch>(&self, arch: &A);
    /// [`LazyMmuState::task_lazy_mmu_mode_resume`].
    fn resume<A: LazyMmuArch>(&self, arch: &A);
}

impl<W: LocalWord<u8>> SwitchState for LazyMmuState<W> {
    fn is_on(&self) -> bool {
        self.task_lazy_mmu_mode_active()
    }
    fn pause<A: LazyMmuArch>(&self, arch: &A) {
        self.task_lazy_mmu_mode_pause(arch);
    }
    fn resume<A: LazyMmuArch>(&self, arch: &A) {
        self.task_lazy_mmu_mode_resume(arch);
    }
}

/// How the hooks of the sections and of the switch find each other.
pub trait Form: Copy {
    /// What it is called.
    const NAME: &'static str;
    /// Whether the CPU knows that it is in a section, or the task's generic state does.
    const CPU_KNOWS: bool = true;
    /// Whether a second enter is counted, and a second leave undoes it.
    const NESTS: bool = false;
    /// Whether what was left at the switch is known by a flag of the task, or asked of its generic state.
    const TASK_REMEMBERS: bool = false;
    /// Whether a second enter and a second leave do nothing.
    const TOLERATES: bool = false;
}

macro_rules! forms {
    ($($(#[$doc:meta])* $name:ident $text:literal { $($item:ident),* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub enum $name {}

            impl Form for $name {
                const NAME: &'static str = $text;
                $(const $item: bool = !<Plain as Form>::$item;)*
            }
        )*
    };
}

/// What a form is if it says nothing.
#[derive(Clone, Copy)]
enum Plain {}

impl Form for Plain {
    const NAME: &'static str = "";
}

forms! {
    /// To Linux 6.19, but for 2023 to March 2025: a mode of the CPU that must alternate, a flag of the task.
    X1 "xen-x1" { TASK_REMEMBERS }
    /// 2023 to March 2025 (49147beb0ccb): nesting is counted, and a switch takes one level back only.
    X2 "xen-x2" { TASK_REMEMBERS, NESTS }
    /// Linux 7.0 to 7.1-rc3 (291b3abed657): asks the generic state, which is one callback ahead or behind. Stops the machine.
    X3 "xen-x3" {}
    /// Linux 7.1-rc4 (4594437880ce): the same, and what comes twice is let be.
    X4 "xen-x4" { TOLERATES }
    /// The series of 26 May 2026: no mode at all; the hooks at the switch pause and resume the task.
    ///
    /// So a task that does not run is paused once, and one that has not run yet must be, too
    /// ([`LazyMmuState::switched_out`]). The patch that adds these hooks says nothing of new tasks, whose state is a copy of their
    /// running parent's: by it their first switch would resume what is not paused, warn, wrap to 255, and leave them without the mode
    /// whenever they run. Nothing is wrong then but the speed. Whether another patch of the series sees to it we have not found.
    X5 "xen-x5" { CPU_KNOWS }
}

/// Queues stores and flushes; the end of a section makes one hypercall of them.
///
/// Stores and flushes are one queue, so a flush in a section comes behind the stores before it. A section of the kernel's tables may
/// be preempted: [`start_context_switch`](Self::start_context_switch) and [`end_context_switch`](Self::end_context_switch)
/// leave nothing behind on the CPU. In an interrupt an update goes out at once, and a flush takes the interrupted section's
/// queue with it.
///
/// *What breaks:* reading an entry that was changed in the section. It holds the old value, for everybody. And an interrupt that changes an
/// entry for which an update is queued: its own change is in force at once, and the older one comes behind it.
#[derive(Clone, Copy, Debug)]
pub struct Xen<K, F, const N: usize>(pub K, PhantomData<F>);

impl<K: XenKernel<N>, F: Form, const N: usize> Xen<K, F, N> {
    /// The back end of a kernel.
    pub const fn new(kernel: K) -> Self {
        Xen(kernel, PhantomData)
    }

    /// Runs `f` on this CPU's words, which stay this CPU's meanwhile. Linux has single instructions for what is done here
    /// (`this_cpu_read`, `this_cpu_write`), which need no preemption off.
    fn on_this_cpu<R>(&self, f: impl FnOnce(&XenCpu<K, N>) -> R) -> R {
        self.0.preempt_disable();
        let result = f(self.0.xen_cpu());
        self.0.preempt_enable();
        result
    }

    /// Whether updates are queued, here and now. A task that is preempted behind the answer finds it true when it comes back: the
    /// hooks at the switch see to it, on whatever CPU.
    fn is_lazy(&self) -> bool {
        if F::CPU_KNOWS {
            !self.0.in_interrupt() && self.on_this_cpu(|cpu| cpu.mode.get() == MODE_MMU)
        } else {
            self.0.is_lazy_mmu_mode_active()
        }
    }

    /// Queues an operation, and does all that is queued unless a section goes on.
    fn queue(&self, operation: Operation<K::AtomicUsize>) {
        let flags = self.0.local_irq_save();
        let cpu = self.0.xen_cpu();
        if cpu.len() == N {
            self.flush_queue();
        }
        cpu.push(operation);
        if !self.is_lazy() {
            self.flush_queue();
        }
        self.0.local_irq_restore(flags);
    }

    /// Does all that is queued (`xen_mc_flush`). Context: preemption off.
    fn flush_queue(&self) {
        let flags = self.0.local_irq_save();
        let cpu = self.0.xen_cpu();
        if !cpu.is_empty() {
            // SAFETY: who has queued updates has promised that their entries stay until they are in force.
            unsafe { self.0.multicall(cpu) };
            cpu.count.set(0);
        }
        self.0.local_irq_restore(flags);
    }

    /// Takes an address out of all TLBs, behind all that was changed before.
    pub fn flush_tlb_page(&self, addr: usize) {
        self.queue(Operation::FlushAddr(addr));
    }

    /// Takes everything out of all TLBs, likewise.
    pub fn flush_tlb(&self) {
        self.queue(Operation::FlushAll);
    }

    /// The CPU's mode changes, which it must from `from`.
    fn change_mode(&self, cpu: &XenCpu<K, N>, from: usize, to: usize, warning: Warning) {
        if cpu.mode.get() != from {
            self.0.bug(warning);
        }
        cpu.mode.set(to);
    }

    fn enter(&self, cpu: &XenCpu<K, N>) {
        match cpu.mode.get() {
            MODE_MMU if F::TOLERATES => {}
            MODE_MMU if F::NESTS => cpu.nested.set(cpu.nested.get() + 1),
            _ => self.change_mode(cpu, MODE_NONE, MODE_MMU, Warning::EnteredTwice),
        }
    }

    fn leave(&self, cpu: &XenCpu<K, N>) {
        self.flush_queue();
        match (cpu.mode.get(), cpu.nested.get()) {
            (MODE_NONE, _) if F::TOLERATES => {}
            (_, n) if F::NESTS && n > 0 => cpu.nested.set(n - 1),
            _ => self.change_mode(cpu, MODE_MMU, MODE_NONE, Warning::NotEntered),
        }
    }

    /// The CPU is about to switch away from `prev`. Context: in the switch, while `prev` is still the current task.
    pub fn start_context_switch(&self, prev: &impl SwitchState, task: &XenTask<K>) {
        let cpu = self.0.xen_cpu();
        if !F::CPU_KNOWS {
            prev.pause(self);
        } else if cpu.mode.get() == MODE_MMU {
            self.leave(cpu);
            if F::TASK_REMEMBERS {
                task.was_lazy.set(1);
            }
        }
        self.change_mode(cpu, MODE_NONE, MODE_CPU, Warning::EnteredTwice);
    }

    /// The CPU has switched to `next`. Context: in the switch.
    pub fn end_context_switch(&self, next: &impl SwitchState, task: &XenTask<K>) {
        let cpu = self.0.xen_cpu();
        self.flush_queue();
        self.change_mode(cpu, MODE_CPU, MODE_NONE, Warning::NotEntered);
        if !F::CPU_KNOWS {
            next.resume(self);
        } else if F::TASK_REMEMBERS {
            if task.was_lazy.get() != 0 {
                task.was_lazy.set(0);
                self.enter(cpu);
            }
        } else if next.is_on() {
            self.enter(cpu);
        }
    }
}

impl<K: XenKernel<N>, F: Form, const N: usize> LazyMmuArch for Xen<K, F, N> {
    type Ptes = ();

    kernels_part!();

    fn arch_enter_lazy_mmu_mode(&self) {
        if F::CPU_KNOWS {
            self.on_this_cpu(|cpu| self.enter(cpu));
        }
    }

    fn arch_leave_lazy_mmu_mode(&self) {
        self.on_this_cpu(|cpu| if F::CPU_KNOWS { self.leave(cpu) } else { self.flush_queue() });
    }

    fn arch_flush_lazy_mmu_mode(&self) {
        self.on_this_cpu(|_| self.flush_queue());
    }
}

impl<K: XenKernel<N>, F: Form, const N: usize> PteAccess for Xen<K, F, N> {
    type Kernel = K;

    unsafe fn set_pte(&self, pte: Pte<K>, value: usize) {
        if self.is_lazy() {
            self.queue(Operation::Update(pte.ptep, value));
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.0.mmu_update(pte.ptep, value) };
        }
    }

    /// By instructions of the guest's own, which Xen lets through one by one: at once, past the queue, as all of x86 does that is
    /// neither `set_pte` nor the end of a transaction.
    unsafe fn pte_update(&self, pte: Pte<K>, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.update(change) }
    }

    /// A plain read: the commit keeps what the hardware sets meanwhile.
    unsafe fn ptep_modify_prot_start(&self, pte: Pte<K>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.load() }
    }

    /// Always by the queue.
    unsafe fn ptep_modify_prot_commit(&self, pte: Pte<K>, value: usize) {
        self.queue(Operation::UpdatePreservingBits(pte.ptep, value));
    }
}
