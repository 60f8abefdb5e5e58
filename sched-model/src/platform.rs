//! [`Lab`]: the kernel of the model, as the library sees it. Its memory, CPUs and interrupts are the machine's.
//!
//! The library's code runs here as it is; what a kernel would do around it (page tables, freeing) is done on arena
//! objects, so that the checker sees it.

use core::cell::{Cell, RefCell};
use core::hash::Hash;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

use lazytlb_core::cpumask::{CpuId, CpuMask};
use lazytlb_core::memory::{At, Label, Memory, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange, IpiFlush, IpiUnlazy};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, PerCpu, Platform, Root, Warning, Worker};
use lazytlb_core::tlb::{BroadcastTags, Invlpgb, OwnTag, Tag, TaggedTlb};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};
use lazytlb_shootdown::arm64::AsidRule;
use lazytlb_shootdown::plain::PlainRule;
use lazytlb_shootdown::power_radix::Radix;
use lazytlb_shootdown::x86::X86;
use lazytlb_shootdown::x86_broadcast::Broadcasting;
use lazytlb_shootdown::{Arm64, Plain, PowerRadix, X86_6_12, X86_6_14, X86Broadcast};

use crate::mutants::Wrong;
use crate::tables::{Table, Tables};
use crate::tlb::Mmus;
use crate::watch::Watch;

/// The model's kernel, on the flush rules `Rules`.
#[derive(Debug)]
pub struct Lab<Rules>(PhantomData<fn() -> Rules>);

impl<Rules> Lab<Rules> {
    /// The handle.
    pub const NEW: Self = Lab(PhantomData);
}

impl<Rules> Clone for Lab<Rules> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Rules> Copy for Lab<Rules> {}

/// The broadcast invalidation of the machines that have one.
pub const INVALIDATE: Label = Label::new("hardware.invalidate");
/// The begin of a broadcast on AMD's machines.
pub const INVLPGB: Label = Label::new("hardware.invlpgb");
/// The wait for those that the CPU has begun.
pub const TLBSYNC: Label = Label::new("hardware.tlbsync");

/// The vector of the library's interrupt.
pub(crate) const CALL_VECTOR: u8 = 0;

thread_local! {
    /// The machine that is being set up, and the CPU that set-up code runs as.
    static SETUP: Cell<(*const Machine, usize)> = const { Cell::new((core::ptr::null(), 0)) };
    /// What is watched in the machine that runs.
    static WATCH: RefCell<Option<Rc<Watch>>> = const { RefCell::new(None) };
}

/// Runs set-up code for `machine`.
pub(crate) fn set_up<R>(machine: &Machine, f: impl FnOnce() -> R) -> R {
    let before = SETUP.replace((machine, 0));
    let result = f();
    SETUP.set(before);
    result
}

/// Runs set-up code as CPU `cpu`.
pub(crate) fn set_up_cpu<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
    let before = SETUP.get();
    SETUP.set((before.0, cpu));
    let result = f();
    SETUP.set(before);
    result
}

/// Runs the machine with `watch` looking on.
pub(crate) fn watched<R>(watch: &Rc<Watch>, f: impl FnOnce() -> R) -> R {
    let before = WATCH.replace(Some(Rc::clone(watch)));
    let result = f();
    WATCH.set(before);
    result
}

/// What is watched in the machine that runs, if one does. By pointer: `f` may be suspended for ever, and a borrow or a
/// count on its stack would stay.
pub(crate) fn watch<R>(f: impl FnOnce(&Watch) -> R) -> Option<R> {
    let watch = WATCH.with_borrow(|watch| watch.as_deref().map(core::ptr::from_ref));
    // SAFETY: `watched` keeps it until the machine has stopped.
    watch.map(|watch| f(unsafe { &*watch }))
}

/// A CPU's MMU loads a root, in a run and in set-up.
fn load_root(cpu: usize, root: Root, tag: usize, keep: bool, at: &'static Location<'static>) {
    if watch(|watch| watch.load_root(cpu, root, tag, keep, at)).is_none() {
        Mmus::of_setup().load_root(cpu, root, tag, keep);
    }
}

/// Per-CPU storage in the arena.
#[derive(Debug)]
pub struct Placed<T>(*const [T]);

impl<T> PerCpu<T> for Placed<T> {
    fn from_fn(nr_cpu_ids: usize, mut init: impl FnMut(CpuId) -> T) -> Self {
        let (machine, _) = SETUP.get();
        // SAFETY: it is null, or set by `set_up` for as long as that borrows the machine.
        let machine = unsafe { machine.as_ref() }.expect("per-CPU areas are made during set-up");
        let placed: *const [T] = machine.place_slice("rq", ObjectKind::PerCpu, nr_cpu_ids, |cpu| init(CpuId::new(cpu)));
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        Placed(unsafe { &*placed })
    }

    fn get(&self, cpu: CpuId) -> &T {
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        let slots = unsafe { &*self.0 };
        &slots[cpu.get()]
    }
}

impl<Rules> Memory for Lab<Rules> {
    type AtomicUsize = SimWord<usize>;
    type AtomicPtr<T> = SimWord<*mut T>;
    type LocalUsize = SimLocal<usize>;
    type LocalPtr<T> = SimLocal<*mut T>;

    #[inline]
    fn fence(self, at: impl Into<At>) {
        Sim.fence(at);
    }

    fn spin_hint(self) {
        Sim.spin_hint();
    }

    fn spin_until<R>(self, ready: impl FnMut() -> Option<R>) -> R {
        Sim.spin_until(ready)
    }

    fn outcome_of<R: Hash>(self, f: impl FnOnce() -> R) -> R {
        Sim.outcome_of(f)
    }
}

/// Looks at the library's words without a step, in a run and outside.
pub(crate) fn peek<T>(look: impl Fn() -> T) -> T {
    Machine::try_with(|machine| machine.quietly(&look)).unwrap_or_else(look)
}

/// What reports and books know an mm by; 0 for none.
pub(crate) fn address<R>(mm: Option<MmPtr<Lab<R>>>) -> usize
where
    Lab<R>: Platform,
{
    mm.map_or(0, |mm| mm.as_ptr().addr())
}

/// What the model's kernel keeps in each mm: its page tables.
pub type MmData = Tables;

macro_rules! platform {
    ($rules:ty) => {
        // SAFETY: the machine runs one CPU's code at a time, keeps interrupts out of sections that disabled them, and
        // interrupts every online CPU that is kicked. Whether `free_mm` is called too early is what the model finds
        // out: nothing is ever really freed.
        unsafe impl Platform for Lab<$rules> {
            type Arch = $rules;
            type PerCpu<T> = Placed<T>;
            type MaskWords = [SimWord<usize>; 1];
            type IrqFlags = bool;
            type MmData = MmData;

            const DEBUG_VM: bool = true;

            fn nr_cpu_ids(self) -> usize {
                let count = |machine: &Machine| machine.config().cpus;
                Machine::try_with(count).unwrap_or_else(|| {
                    // SAFETY: as in `Placed::from_fn`.
                    unsafe { SETUP.get().0.as_ref() }.map_or(0, count)
                })
            }

            fn smp_processor_id(self) -> CpuId {
                CpuId::new(Machine::try_with(Machine::this_cpu).unwrap_or_else(|| SETUP.get().1))
            }

            fn cpu_online(self, cpu: CpuId) -> bool {
                Machine::try_with(|machine| machine.is_online(cpu.get())).unwrap_or(true)
            }

            fn cpu_isolated(self, cpu: CpuId) -> bool {
                watch(|watch| watch.isolated.contains(&cpu.get())) == Some(true)
            }

            fn local_irq_save(self, label: Label) -> bool {
                Machine::try_with(|machine| machine.irq_save(label)).unwrap_or(false)
            }

            unsafe fn local_irq_restore(self, flags: bool) {
                Machine::try_with(|machine| machine.irq_restore(flags));
            }

            fn preempt_disable(self) {
                Machine::try_with(Machine::preempt_disable);
            }

            unsafe fn preempt_enable(self) {
                Machine::try_with(Machine::preempt_enable);
            }

            fn context(self) -> Context {
                let setup = Context {
                    in_nmi: false,
                    in_hardirq: false,
                    in_softirq: false,
                    preempt_disabled: false,
                    irqs_disabled: false,
                };
                Machine::try_with(Machine::context).unwrap_or(setup)
            }

            #[track_caller]
            unsafe fn load_root(self, root: Root) {
                let cpu = self.smp_processor_id().get();
                load_root(cpu, root, 0, false, Location::caller());
            }

            fn read_root(self) -> Root {
                let cpu = self.smp_processor_id().get();
                Root(watch(|watch| watch.mmus().read_root(cpu)).unwrap_or_default())
            }

            fn flush_tlb_local(self) {
                watch(|watch| watch.mmus().flush_local(None));
            }

            fn kick(self, targets: &CpuMask<Self>) {
                Machine::with(|machine| {
                    // The caller has posted with locked instructions, so its own mask is in memory.
                    let mask = machine.quietly(|| targets.cpus(Relaxed).fold(0, |mask, cpu| mask | 1 << cpu.get()));
                    machine.send_ipi(mask, CALL_VECTOR);
                });
            }

            fn wait_until<R>(self, ready: impl FnMut() -> Option<R>) -> R {
                Sim.spin_until(ready)
            }

            #[track_caller]
            unsafe fn unmap_all(self, mm: &MmCore<Self>) {
                Machine::try_with(|machine| machine.might_sleep_by("I12: "));
                // SAFETY: the root table is in the arena; whether it is allocated is what the machine checks.
                let root: &Table = unsafe { &*core::ptr::with_exposed_provenance(mm.root().0) };
                root.clear();
            }

            #[track_caller]
            unsafe fn free_tables(self, mm: &MmCore<Self>) {
                let at = Location::caller();
                Machine::try_with(|machine| crate::roam::forget(machine, 1));
                watch(|watch| watch.unpin(mm.root()));
                watch(|watch| mm.data().free_below_root(watch, at));
            }

            #[track_caller]
            unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
                let at = Location::caller();
                Machine::with(|machine| {
                    if !machine.is_online(machine.this_cpu()) {
                        machine.fail(Kind::WrongContext, "an mm is freed on a CPU that is offline");
                    }
                });
                // SAFETY: in the arena; the switch path frees only what it still may look into.
                let root = unsafe { mm.as_ref() }.root();
                watch(|watch| watch.free_mm(mm.cast(), root, at));
            }

            #[track_caller]
            fn warn(self, warning: Warning) {
                let rule = if warning == Warning::WrongContext { "I11: " } else { "" };
                Machine::with(|machine| {
                    machine.fail(Kind::Warning, format!("{rule}{warning}, in {}", machine.function()));
                });
            }

            #[track_caller]
            fn kasan_check_byte(self, address: *const u8) {
                if watch(|watch| watch.checks_active_mm) == Some(true) {
                    let at = Location::caller();
                    Machine::with(|machine| machine.check_byte(address.addr(), at));
                }
            }

            #[track_caller]
            fn frame_enter(self, function: &'static str) {
                let at = Location::caller();
                Machine::try_with(|machine| {
                    machine.frame_enter(function, at);
                    crate::roam::forget(machine, 0);
                });
            }

            fn frame_leave(self) {
                Machine::try_with(Machine::frame_leave);
            }
        }

        impl Worker for Lab<$rules> {
            fn queue_work(self) {
                watch(|watch| watch.worker().queue_work());
            }
        }

        impl Clock for Lab<$rules> {
            fn jiffies(self) -> usize {
                watch(|watch| watch.worker().jiffies()).unwrap_or_default()
            }

            fn queue_work_at(self, at: usize) {
                watch(|watch| watch.worker().queue_work_at(at));
            }
        }

        // SAFETY: the machine interrupts idle CPUs too.
        unsafe impl IpisInterrupt for Lab<$rules> {}
    };
}

platform!(IpiFlush);
platform!(IpiUnlazy);
platform!(BroadcastFlush);

platform!(X86_6_12<SLOTS>);
platform!(X86_6_14<SLOTS, TRIM>);
platform!(X86Broadcast<SLOTS, TRIM, FROM>);
platform!(Plain);
platform!(PowerRadix);
platform!(Arm64);

// With a step wrong: planted bugs.
platform!(X86<Wrong, SLOTS>);
platform!(WrongBroadcast);
platform!(PlainRule<Wrong>);
platform!(Radix<Wrong>);
platform!(AsidRule<Wrong>);

/// AMD's rule with a step wrong.
pub(crate) type WrongBroadcast = X86<Broadcasting<Wrong, TRIM, FROM>, SLOTS>;

/// How many address spaces x86's rules keep translations of on each CPU: so few that tests run out of them.
pub(crate) const SLOTS: usize = 2;
/// One flush in so many trims the mask: so few that tests come to one.
pub(crate) const TRIM: usize = 2;
/// On so many CPUs an mm runs that gets a global ASID: so few that small tests come to it.
pub(crate) const FROM: usize = 2;

// SAFETY: what is cached lives in `Mmus`, which does as this claims.
unsafe impl<R> TaggedTlb for Lab<R>
where
    Lab<R>: Platform,
{
    fn nr_tags(self) -> usize {
        // One more than there are CPUs: as few as rules with a common pool of tags can do with.
        (self.nr_cpu_ids() + 1).max(SLOTS)
    }

    #[track_caller]
    unsafe fn load_root_tagged(self, root: Root, tag: Tag, keep: bool) {
        load_root(self.smp_processor_id().get(), root, tag.0, keep, Location::caller());
    }

    fn flush_tag_local(self, tag: Tag) {
        watch(|watch| watch.mmus().flush_local(Some(tag.0)));
    }
}

// SAFETY: the model's kernel gives each place for an mm a number, and there is one mm at a place.
unsafe impl<R> OwnTag for Lab<R>
where
    Lab<R>: Platform<MmData = MmData>,
{
    fn tag_of(self, mm: &MmCore<Self>) -> Tag {
        Tag(mm.data().tag())
    }
}

// SAFETY: it is one step on each CPU after the other, and the caller's stores are in memory before the first.
unsafe impl<R> BroadcastTags for Lab<R>
where
    Lab<R>: Platform,
{
    fn flush_tag_broadcast(self, tag: Tag) {
        invalidate(Some(tag.0));
    }
}

// SAFETY: what is begun is kept in `Mmus` with the CPU that has begun it, and done by its next TLBSYNC.
unsafe impl<R> Invlpgb for Lab<R>
where
    Lab<R>: Platform,
{
    fn invlpgb_tag(self, tag: Tag) {
        let tags = self.nr_tags();
        if tag.0 > tags {
            Machine::with(|machine| {
                let message = format!("INVLPGB is asked for the ASID {}, and the hardware has {tags}", tag.0);
                machine.fail(Kind::Assertion, message);
            });
        }
        invlpgb(Some(tag.0));
    }

    fn invlpgb_all(self) {
        invlpgb(None);
    }

    fn tlbsync(self) {
        if !Machine::try_with(|machine| machine.drops(TLBSYNC)).unwrap_or(false) {
            let cpu = self.smp_processor_id().get();
            watch(|watch| watch.mmus().tlbsync(cpu));
        }
    }
}

/// The CPU that runs this begins a broadcast.
fn invlpgb(tag: Option<usize>) {
    if !Machine::try_with(|machine| machine.drops(INVLPGB)).unwrap_or(false) {
        let cpu = Machine::try_with(Machine::this_cpu).unwrap_or_default();
        watch(|watch| watch.mmus().invlpgb(cpu, tag));
    }
}

/// The hardware of all CPUs drops what it caches, or what it caches under a tag.
fn invalidate(tag: Option<usize>) {
    // The hardware waits for earlier page-table writes.
    Sim.fence(SeqCst);
    let dropped = Machine::try_with(|machine| machine.drops(INVALIDATE)).unwrap_or(false);
    if !dropped {
        watch(|watch| watch.mmus().flush_all(tag));
    }
}

// SAFETY: it never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for Lab<Arm64> {}

// SAFETY: its MMU moves when the scheduler says, and a CPU leaves a mask only when it is on another mm.
unsafe impl MaskCoversLazy for Lab<Plain> {}

// SAFETY: as above.
unsafe impl MaskCoversLazy for Lab<PlainRule<Wrong>> {}

// SAFETY: a CPU leaves a mask only when it is on another mm or has ended its borrow, pointer and MMU, and the flush of the
// last mmput asks all of the mask to do so.
unsafe impl MaskCoversLazy for Lab<PowerRadix> {
    const FLUSH_ENDS_BORROWS: bool = true;
}

// SAFETY: not true, and meant so; see IpiFlush below.
unsafe impl MaskCoversLazy for Lab<X86_6_12<SLOTS>> {}

// SAFETY: not true, and meant so; see IpiFlush below.
unsafe impl MaskCoversLazy for Lab<X86<Wrong, SLOTS>> {}

// SAFETY: not true, and meant so; see IpiFlush below.
unsafe impl MaskCoversLazy for Lab<X86_6_14<SLOTS, TRIM>> {}

// SAFETY: not true, and meant so; see IpiFlush below.
unsafe impl MaskCoversLazy for Lab<X86Broadcast<SLOTS, TRIM, FROM>> {}

// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for Lab<BroadcastFlush> {}

// SAFETY: IpiUnlazy takes a CPU out of a mask, and ends its borrow in the flush, where it takes active_mm off the mm.
unsafe impl MaskCoversLazy for Lab<IpiUnlazy> {
    const FLUSH_ENDS_BORROWS: bool = true;
}

// SAFETY: not true, and meant so. x86's rule takes a lazy CPU out of the mask while its active_mm still names the mm;
// the lab runs strategies where they do not belong, to show what happens. In a kernel this line would be the bug.
unsafe impl MaskCoversLazy for Lab<IpiFlush> {}

impl BroadcastTlb for Lab<BroadcastFlush> {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {
        invalidate(None);
    }
}
