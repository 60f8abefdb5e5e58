//! `Platform`: what a kernel tells the library about itself.
//!
//! A kernel implements [`Platform`] once, for a type of zero size as a rule, and claims with the marker traits below
//! which properties its hardware and its interrupt code really have. A strategy that depends on a property asks for
//! the marker, so on a machine without it the strategy does not compile.
//!
//! # Implementing it
//!
//! 1. Choose the memory: [`Native`](crate::native::Native)'s types, in nearly every kernel.
//! 2. Name the storage: an array per CPU, an array of mask words, or your kernel's per-CPU section.
//! 3. Choose how the MMU is switched and flushed ([`Platform::Arch`]): one of [`mm_switch`](crate::mm_switch)'s, or
//!    your own.
//! 4. Implement the calls. Send the interrupt of [`kick`](Platform::kick) to
//!    [`Switcher::on_ipi`](crate::Switcher::on_ipi).
//! 5. Claim the markers that hold.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::cpumask::{CpuId, CpuMask, MaskWords};
use crate::memory::{Label, Memory};
use crate::mm::MmCore;
use crate::mm_switch::MmSwitch;

/// The physical address (with whatever tag bits the hardware wants) of a page-table root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Root(pub usize);

/// Storage with one `T` for each possible CPU.
pub trait PerCpu<T> {
    /// Storage for CPUs `0..nr_cpu_ids`, each slot made by `init`.
    ///
    /// # Panics
    /// If the storage is too small: a platform whose `nr_cpu_ids` contradicts its types.
    fn from_fn(nr_cpu_ids: usize, init: impl FnMut(CpuId) -> T) -> Self;

    /// The slot of `cpu`, from any CPU.
    ///
    /// # Panics
    /// If there is no such CPU.
    fn get(&self, cpu: CpuId) -> &T;

    /// The slot of the calling CPU, whose number `cpu` is. A kernel with a per-CPU segment register overrides this.
    ///
    /// Context: pinned to `cpu`.
    fn this(&self, cpu: CpuId) -> &T {
        self.get(cpu)
    }
}

impl<T, const N: usize> PerCpu<T> for [T; N] {
    fn from_fn(nr_cpu_ids: usize, mut init: impl FnMut(CpuId) -> T) -> Self {
        assert!(nr_cpu_ids <= N, "per-CPU storage of {N} slots cannot hold {nr_cpu_ids} CPUs");
        core::array::from_fn(|cpu| init(CpuId::new(cpu)))
    }

    #[inline]
    fn get(&self, cpu: CpuId) -> &T {
        &self[cpu.get()]
    }
}

/// Where the calling code runs; what it may do follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// In a non-maskable interrupt.
    pub in_nmi: bool,
    /// In a hardware interrupt handler.
    pub in_hardirq: bool,
    /// In a softirq, or with bottom halves disabled.
    pub in_softirq: bool,
    /// Preemption is disabled (a spinlock is held, say).
    pub preempt_disabled: bool,
    /// Interrupts are disabled on this CPU.
    pub irqs_disabled: bool,
}

impl Context {
    /// Whether this context may wait for other CPUs to handle an interrupt: they might be waiting for this one.
    pub fn may_wait_for_cpus(self) -> bool {
        !(self.in_nmi || self.in_hardirq || self.in_softirq || self.irqs_disabled)
    }

    /// Whether this context may sleep, and so take any lock: process context with nothing disabled.
    pub fn may_sleep(self) -> bool {
        self.may_wait_for_cpus() && !self.preempt_disabled
    }
}

/// What the library warns of; Linux would print a `WARN` with a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A reference was dropped that was not there: `users` or `count` went below zero.
    CountUnderflow,
    /// A CPU started to borrow while its slot still named another borrow.
    SlotBusy,
    /// A CPU that runs a user of an mm was asked to give the mm up: it was dying while it had a user.
    EvictedUser,
    /// After the eviction round a CPU still had the mm as `active_mm` (Linux `DEBUG_VM_SHOOT_LAZIES`).
    LazyLeft,
    /// The last reference to an mm was dropped where its strategy cannot free it.
    WrongContext,
    /// A call that must come from a kernel thread came from a user task, or the reverse.
    WrongTask,
    /// Temporary page tables were to be loaded while the hardware was not on the tables of `active_mm`.
    TemporaryNested,
}

/// A kernel, as the library sees it: a small copyable handle over its memory, CPUs, interrupts and MMU.
///
/// # Safety
///
/// The library keeps other CPUs' page tables alive by what these calls promise. An implementation guarantees:
///
/// 1. [`smp_processor_id`](Self::smp_processor_id) is the CPU that runs the caller as long as preemption or
///    interrupts are off, and is below [`nr_cpu_ids`](Self::nr_cpu_ids).
/// 2. Between [`local_irq_save`](Self::local_irq_save) and the matching restore no interrupt but an NMI runs on this
///    CPU, and the code stays on it.
/// 3. When [`load_root`](Self::load_root) returns, this CPU's hardware starts no walk from the former root.
/// 4. Each CPU kicked that is online calls [`Switcher::on_ipi`](crate::Switcher::on_ipi), with interrupts off, at
///    some time after the kick once it has interrupts on, and sees what the kicking CPU stored before the kick.
/// 5. [`free_mm`](Self::free_mm) frees what it is told to free and nothing else refers to.
pub unsafe trait Platform: Memory + 'static {
    /// How this architecture switches and flushes its MMU.
    type Arch: MmSwitch<Self>;
    /// One slot for each possible CPU.
    type PerCpu<T>: PerCpu<T>;
    /// Words enough for one bit for each possible CPU.
    type MaskWords: MaskWords<Self::AtomicUsize>;
    /// What [`local_irq_save`](Self::local_irq_save) remembers.
    type IrqFlags: Copy;
    /// What the kernel keeps in each mm for itself: its page-table handle, its notifier list, a pointer back.
    type MmData;

    /// Whether the library checks itself (slot busy, wrong task, wrong context) on paths where that costs something.
    const DEBUG_VM: bool = false;

    /// One more than the highest CPU number there can be. Never less than before. Context: any.
    fn nr_cpu_ids(self) -> usize;

    /// The CPU that runs this code. Context: pinned, else the answer is stale at once.
    fn smp_processor_id(self) -> CpuId;

    /// Whether `cpu` takes interrupts.
    ///
    /// Context: preemption off, and a CPU seen online stays so until preemption is on again: nobody must wait for an
    /// interrupt that a CPU on its way out has lost. (Linux takes CPUs down in `stop_machine`, which waits for that.)
    fn cpu_online(self, cpu: CpuId) -> bool;

    /// Whether `cpu` is to be left alone: it runs one task with nobody else's interrupts (Linux `nohz_full`,
    /// `isolcpus`). A strategy that has the choice does not interrupt it.
    ///
    /// Context: any. It does not change while the CPU is online.
    fn cpu_isolated(self, cpu: CpuId) -> bool {
        let _ = cpu;
        false
    }

    /// Disables interrupts on this CPU and says what they were before. `label` names the section for the lab.
    fn local_irq_save(self, label: Label) -> Self::IrqFlags;

    /// Puts interrupts back to what [`local_irq_save`](Self::local_irq_save) found.
    ///
    /// # Safety
    /// `flags` is from the matching call, and no [`IrqsOff`] of the section is used afterwards.
    unsafe fn local_irq_restore(self, flags: Self::IrqFlags);

    /// Disables preemption; nests.
    fn preempt_disable(self);

    /// Enables preemption again.
    ///
    /// # Safety
    /// Matches a [`preempt_disable`](Self::preempt_disable) of the caller.
    unsafe fn preempt_enable(self);

    /// Where the caller runs. Context: any.
    fn context(self) -> Context;

    /// Loads a page-table root into this CPU's MMU.
    ///
    /// Context: interrupts off. Ordering: whether it is a full barrier is
    /// [`MmSwitch::SWITCH_MM_IS_BARRIER`]'s to say.
    ///
    /// # Safety
    /// The page tables of `root` live until another root is loaded on this CPU.
    unsafe fn load_root(self, root: Root);

    /// The root that this CPU's MMU is on, asked of the hardware and not of any book.
    ///
    /// Context: interrupts off, or in an NMI.
    fn read_root(self) -> Root;

    /// Drops this CPU's cached translations of user addresses. Context: pinned.
    fn flush_tlb_local(self);

    /// Interrupts the CPUs of `targets` that are online. The library tracks their answers itself.
    ///
    /// Context: preemption off, interrupts on. Ordering: after all earlier stores of this CPU.
    fn kick(self, targets: &CpuMask<Self>);

    /// One turn of a wait loop: tells the processor that it polls and, on a platform whose CPUs poll for requests
    /// instead of being interrupted, serves those of this CPU ([`Switcher::on_ipi`](crate::Switcher::on_ipi)).
    /// Two CPUs that wait for each other would otherwise wait for ever.
    fn relax(self) {
        self.spin_hint();
    }

    /// Waits until `ready` returns something; `ready` only reads, as for [`Memory::spin_until`].
    ///
    /// Context: interrupts on, preemption off.
    #[track_caller]
    fn wait_until<R>(self, mut ready: impl FnMut() -> Option<R>) -> R {
        loop {
            if let Some(value) = ready() {
                return value;
            }
            self.relax();
        }
    }

    /// The last user is gone: clears all user entries of the page tables, and frees nothing yet.
    ///
    /// Context: process context, may sleep. Called before the flush that precedes [`free_tables`](Self::free_tables).
    ///
    /// # Safety
    /// `mm` has no users and never will again.
    unsafe fn unmap_all(self, mm: &MmCore<Self>);

    /// Frees the page tables below the root, after the flush.
    ///
    /// Context: as [`unmap_all`](Self::unmap_all).
    ///
    /// # Safety
    /// As for [`unmap_all`](Self::unmap_all), and no CPU's hardware can reach the tables any more.
    unsafe fn free_tables(self, mm: &MmCore<Self>);

    /// Frees the root table, the kernel's data and the mm itself.
    ///
    /// `mm` comes from a shared reference. A kernel in Rust that allocated the mm as a box keeps the pointer to the box
    /// in [`MmData`](Self::MmData) and frees through that.
    ///
    /// Context: that of the last mmdrop: process context, or a switch tail with interrupts on and preemption off.
    ///
    /// # Safety
    /// `mm` is the embedded [`MmCore`] of an `Mm` made for this platform; its `count` is zero and nobody uses it.
    unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>);

    /// Reports a broken rule. The default does nothing; a kernel prints, the lab gives a verdict.
    fn warn(self, warning: Warning) {
        let _ = warning;
    }

    /// Checks one byte as KASAN's `kasan_check_byte` does; nothing by default.
    ///
    /// The switch path calls it on the outgoing `active_mm`: Lutomirski's check of November 2021, which turns a
    /// dangling pointer that is merely held into a report.
    #[track_caller]
    fn kasan_check_byte(self, address: *const u8) {
        let _ = address;
    }

    /// A function of the switch path begins; for reports. Nothing by default.
    #[track_caller]
    fn frame_enter(self, function: &'static str) {
        let _ = function;
    }

    /// It ends.
    fn frame_leave(self) {}
}

/// Claim: a kicked CPU is really interrupted wherever it has interrupts on, idle included.
///
/// # Safety
/// Strategies free page tables on the word of an interrupted CPU; see [`Platform`], point 4.
pub unsafe trait IpisInterrupt: Platform {}

/// Claim: there is a worker, so that work which must not be done here and now is done later.
pub trait Worker: Platform {
    /// Asks that [`Switcher::collect`](crate::Switcher::collect) be called soon, from process context (Linux
    /// `queue_work`). Asking again before it has begun is the same as asking once; asking while it runs makes it run once
    /// more.
    ///
    /// Context: any but an NMI. It allocates nothing: there is one such work for the machine, and the platform has it ready.
    /// Ordering: the worker sees what the caller stored before it asked.
    fn queue_work(self);
}

/// Claim: there is a clock, and a worker that can be asked for at a time.
pub trait Clock: Worker {
    /// A clock that only goes forward, in ticks of a length that the platform chooses (Linux `jiffies`). It wraps around.
    ///
    /// Context: any.
    fn jiffies(self) -> usize;

    /// What the clock shows so many ticks from now. What is further away than half its range cannot be told from the past, and
    /// counts as that far away.
    fn jiffies_in(self, ticks: usize) -> usize {
        self.jiffies().wrapping_add(ticks.min(isize::MAX.cast_unsigned()))
    }

    /// As [`queue_work`](Worker::queue_work), when the clock has come to `at`. Of several times the earliest counts at
    /// least (Linux `mod_delayed_work`).
    ///
    /// Context: any but an NMI.
    fn queue_work_at(self, at: usize);
}

/// Claim: at any time `mm_cpumask(mm)` holds every CPU whose `active_mm` is mm (invariant I6 of ARCHITECTURE.md).
///
/// Architectures that clear a CPU's bit when only its MMU leaves the mm, as x86 does, must not claim it.
///
/// # Safety
/// [`Shootdown`](https://docs.rs/lazytlb-shootdown) frees an mm after it has asked just those CPUs.
pub unsafe trait MaskCoversLazy: Platform {
    /// Whether the flush of freed tables already ends every borrow of the mm, pointer and MMU, before it returns:
    /// [`IpiUnlazy`](crate::mm_switch::IpiUnlazy) does, hardware that broadcasts does not.
    const FLUSH_ENDS_BORROWS: bool = false;
}

/// Proof that interrupts are off on this CPU, and so that the code stays on it.
#[derive(Debug)]
pub struct IrqsOff<'a, P> {
    platform: P,
    cpu: CpuId,
    /// Not `Send`: the proof is about one CPU.
    _section: PhantomData<(&'a (), *const ())>,
}

impl<P: Platform> IrqsOff<'_, P> {
    /// States that interrupts are off, in code that is called so: the scheduler, an interrupt handler.
    ///
    /// # Safety
    /// Interrupts are off on this CPU and stay off while the value lives.
    pub unsafe fn assume(platform: P) -> Self {
        IrqsOff { platform, cpu: platform.smp_processor_id(), _section: PhantomData }
    }

    /// The CPU.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// The platform.
    #[inline]
    pub fn platform(&self) -> P {
        self.platform
    }
}

/// A section with interrupts off, until dropped.
#[derive(Debug)]
pub struct IrqGuard<P: Platform> {
    platform: P,
    flags: P::IrqFlags,
}

impl<P: Platform> IrqGuard<P> {
    /// The section begins, under a label. Context: as for [`Platform::local_irq_save`]; nests.
    pub fn new(platform: P, label: Label) -> Self {
        IrqGuard { platform, flags: platform.local_irq_save(label) }
    }

    /// That interrupts are off, for as long as the section lasts.
    pub fn irqs_off(&self) -> IrqsOff<'_, P> {
        // SAFETY: the guard was made by local_irq_save and restores only when dropped, and it is borrowed.
        unsafe { IrqsOff::assume(self.platform) }
    }
}

impl<P: Platform> Drop for IrqGuard<P> {
    fn drop(&mut self) {
        // SAFETY: `new` saved them, and every IrqsOff of the section borrows the guard.
        unsafe { self.platform.local_irq_restore(self.flags) };
    }
}

/// A section with preemption off, until dropped.
#[derive(Debug)]
pub struct PreemptGuard<P: Platform>(P);

impl<P: Platform> PreemptGuard<P> {
    /// The section begins. Context: any; nests.
    pub fn new(platform: P) -> Self {
        platform.preempt_disable();
        PreemptGuard(platform)
    }
}

impl<P: Platform> Drop for PreemptGuard<P> {
    fn drop(&mut self) {
        // SAFETY: `new` disabled it.
        unsafe { self.0.preempt_enable() };
    }
}

/// Names the running function to the platform's reports, until dropped ([`Platform::frame_enter`]). Context: any.
#[must_use = "the frame ends when it is dropped"]
pub struct Frame<P: Platform>(P);

impl<P: Platform> Frame<P> {
    /// The function begins.
    #[track_caller]
    #[inline]
    pub fn enter(platform: P, function: &'static str) -> Self {
        platform.frame_enter(function);
        Frame(platform)
    }
}

impl<P: Platform> fmt::Debug for Frame<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frame")
    }
}

impl<P: Platform> Drop for Frame<P> {
    #[inline]
    fn drop(&mut self) {
        self.0.frame_leave();
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Warning::CountUnderflow => "a reference count went below zero",
            Warning::SlotBusy => "the CPU's slot still named another borrow",
            Warning::EvictedUser => "a CPU that runs a user of the mm was told to give it up",
            Warning::LazyLeft => "a CPU still had the mm as active_mm after the eviction round",
            Warning::WrongContext => "the last reference was dropped where its strategy cannot free",
            Warning::WrongTask => "the call does not fit the kind of task it came from",
            Warning::TemporaryNested => "temporary page tables were to be loaded on top of others",
        })
    }
}
