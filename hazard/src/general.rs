//! [`GeneralHazard`]: a borrow held by a general hazard pointer, to show what the wrong shape costs.
//!
//! Linux has been offered hazard pointers for short read sections (Desnoyers, "hazptr" v5, February 2026; the other is
//! Boqun Feng's shazptr of 2025). They differ from the slots of this crate in three ways, and all three are done here:
//!
//! * whoever acquires one need not keep the object alive by other means, so acquiring has a full fence. Version 5 stores a
//!   *wildcard* first, which blocks every reclaimer, and loads the pointer after the fence: no loop that compares;
//! * the slots belong to short sections, so the scheduler empties them: what is still held at a context switch is
//!   *promoted* to a backup node, and the slot is free again. A lazy borrow is always held at the next switch;
//! * a reclaimer looks at slots and backup nodes of all CPUs, in this order: a promotion stores the node first and empties
//!   the slot after that (pair L6).
//!
//! Version 5's reclaimer waits on the spot. An idle CPU would keep it waiting for ever, so here mms wait as under
//! [`HazardDeadline`](crate::HazardDeadline) without a deadline.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::null_mut;

use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicWord, Label, Labelled, LocalWord, Ordering::*};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::platform::Platform;
use lazytlb_core::waiting::{Link, Waiting};

/// The fence between the wildcard and the load of the pointer that it protects. Pairs with the full barrier of the last
/// mmdrop: the reclaimer sees the wildcard, or the one who acquires sees that there is nothing to acquire.
pub const ACQUIRE: Label = Label::new("general_hazard.acquire");
/// The store that empties a slot, after a promotion or when the borrow ends. Release (pairs L2 and L6 with [`SCAN`]).
pub const RELEASE: Label = Label::new("general_hazard.release");
/// The reclaimer's look at a slot. Acquire.
pub const SCAN: Label = Label::new("general_hazard.scan");

/// What a slot holds for the moment in which a CPU acquires: it blocks every reclaimer. No mm has this address.
pub fn wildcard<P: Platform>() -> *mut MmCore<P> {
    core::ptr::without_provenance_mut(1)
}

/// A CPU's slot and its backup node. Written by their CPU alone, with interrupts off.
///
/// Version 5 has four slots; a CPU has one borrow at most, and this is its slot.
pub struct GeneralSlot<P: Platform> {
    slot: P::AtomicPtr<MmCore<P>>,
    backup: P::AtomicPtr<MmCore<P>>,
    /// Whether the borrow began in the switch whose tail comes next: the scheduler promotes what it finds when a switch
    /// begins.
    is_new: P::LocalUsize,
}

impl<P: Platform> GeneralSlot<P> {
    /// Nothing held, from ready words, null and zero; `const`, for statics.
    pub const fn from_parts(
        slot: P::AtomicPtr<MmCore<P>>,
        backup: P::AtomicPtr<MmCore<P>>,
        is_new: P::LocalUsize,
    ) -> Self {
        GeneralSlot { slot, backup, is_new }
    }

    /// What this CPU holds, for those who watch the machine from outside.
    pub fn held(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.slot.load(Relaxed)).or_else(|| MmPtr::new(self.backup.load(Relaxed)))
    }

    /// The slot goes to the backup node, and is free again.
    fn promote(&self, mm: *mut MmCore<P>) {
        self.backup.store(mm, Relaxed);
        self.slot.store(null_mut(), Release.at(RELEASE));
    }

    /// A reclaimer's look at the slot: what it holds, null, or the wildcard. Acquire.
    pub fn scan_slot(&self) -> *mut MmCore<P> {
        self.slot.load(Acquire.at(SCAN))
    }

    /// Whether the slot holds the mm. Where it holds the wildcard, whoever is about to acquire something is waited for: to
    /// take it for a holder would be to wait for a CPU that may never look at what waits. The wait is for three instructions of
    /// another CPU. Context: one that may wait so long.
    pub fn slot_holds(&self, platform: P, mm: *mut MmCore<P>) -> bool {
        platform.spin_until(|| Some(self.scan_slot()).filter(|&held| held != wildcard::<P>())) == mm
    }

    /// A reclaimer's look at the backup node. Acquire: where it does not name the mm, its CPU's MMU has left.
    pub fn scan_backup(&self, mm: *mut MmCore<P>) -> bool {
        self.backup.load(Acquire.at(SCAN)) == mm
    }
}

impl<P: Platform> Slot for GeneralSlot<P> {
    fn new() -> Self {
        GeneralSlot {
            slot: AtomicWord::new(null_mut()),
            backup: AtomicWord::new(null_mut()),
            is_new: LocalWord::new(0),
        }
    }

    fn reinit(&self) {
        self.slot.store(null_mut(), Relaxed);
        self.backup.store(null_mut(), Relaxed);
        self.is_new.set(0);
    }
}

impl<P: Platform> fmt::Debug for GeneralSlot<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeneralSlot").field("held", &self.held()).finish_non_exhaustive()
    }
}

/// The steps of the scheme that can be got wrong, each with its one right body. A test overrides one to see it caught.
pub trait GeneralSteps<P: Platform>: 'static {
    /// Whether the CPU holds the mm: its slot first, then its backup node. In the other order a promotion between the two
    /// looks is missed.
    fn holds(platform: P, cpu: &GeneralSlot<P>, mm: *mut MmCore<P>) -> bool {
        cpu.slot_holds(platform, mm) || cpu.scan_backup(mm)
    }

    /// What is done when an mm waits from now on: looking once more. The last holder may have left between the first look
    /// and the push, and seen nothing waiting.
    fn look_again(collect: impl FnOnce()) {
        collect();
    }
}

/// The scheme as it is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotsFirst;

impl<P: Platform> GeneralSteps<P> for SlotsFirst {}

/// A general hazard pointer for each borrow.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | a store, one full barrier, a store |
/// | kernel thread to kernel thread | one load; the first time two stores for the promotion |
/// | kernel thread to user | a full barrier for membarrier, one or two release stores, one load |
/// | freeing | two loads for each CPU, a few RMWs if it is borrowed; once more for each borrow that ends meanwhile |
///
/// *Cannot:* bound how long an idle CPU pins what it borrows. What it can, [`HazardDeadline`](crate::HazardDeadline)
/// does for one plain store.
pub struct General<Steps>(PhantomData<fn() -> Steps>);

/// [`General`] with its step as it is meant.
pub type GeneralHazard = General<SlotsFirst>;

impl<Steps> General<Steps> {
    /// The strategy; it has no state of its own.
    pub const fn new() -> Self {
        General(PhantomData)
    }
}

impl<Steps> Default for General<Steps> {
    fn default() -> Self {
        General::new()
    }
}

impl<Steps> Clone for General<Steps> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Steps> Copy for General<Steps> {}

impl<Steps> fmt::Debug for General<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GeneralHazard")
    }
}

impl<P: Platform, Steps: GeneralSteps<P>> LazyTlb<P> for General<Steps> {
    type CpuState = GeneralSlot<P>;
    type MmState = Link<P>;
    type Shared = Waiting<P>;

    fn name(&self) -> &'static str {
        "general-hazard"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &GeneralSlot<P>, _shared: &Waiting<P>, mm: &MmCore<P>) {
        this.slot.store(wildcard::<P>(), Relaxed);
        platform.fence(SeqCst.at(ACQUIRE));
        this.slot.store(MmPtr::from(mm).as_ptr(), Relaxed);
        this.is_new.set(1);
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &GeneralSlot<P>) {
        if !this.backup.load(Relaxed).is_null() {
            this.backup.store(null_mut(), Release.at(RELEASE));
        }
        this.slot.store(null_mut(), Release.at(RELEASE));
        this.is_new.set(0);
    }

    #[inline]
    fn switch_tail(&self, _platform: P, this: &GeneralSlot<P>) -> Option<CountRef<P>> {
        let held = this.slot.load(Relaxed);
        if this.is_new.get() != 0 {
            this.is_new.set(0);
        } else if !held.is_null() {
            this.promote(held);
        }
        None
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if !host.shared().is_empty() {
            self.collect(host);
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        if !is_held(self, host, mm) {
            return Freeing::Now;
        }
        // SAFETY: this is the mm that is to be freed.
        unsafe { host.shared().push(host, mm) };
        Steps::look_again(|| self.collect(host));
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        host.shared().with_turn(host, |turn| {
            for mm in turn.take(host) {
                if is_held(self, host, mm) {
                    // SAFETY: taken above.
                    unsafe { turn.put_back(host, mm) };
                } else {
                    // SAFETY: its count is zero and nobody holds it, so nobody ever will.
                    unsafe { turn.free(host, mm) };
                }
            }
        });
    }
}

/// Whether any CPU holds the mm.
fn is_held<P: Platform, Steps: GeneralSteps<P>>(
    _strategy: &General<Steps>,
    host: &impl Host<P, General<Steps>>,
    mm: MmPtr<P>,
) -> bool {
    host.any_cpu(|cpu| Steps::holds(host.platform(), cpu, mm.as_ptr()))
}

// SAFETY: an mm is freed only when no slot and no backup node names it after its count has reached zero; one of a CPU's two
// does from before its user is given up until after its MMU and active_mm have left.
unsafe impl<P: Platform> KeepsMmAlive<P> for GeneralHazard {}
