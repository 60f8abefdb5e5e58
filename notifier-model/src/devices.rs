//! Drivers: ways to keep a device's translations right, and one that was given up.

mod gru;
mod hmm;
mod kvm;
mod odp;
mod pins;
mod rmap;
mod sva;
mod userptr;
mod xpmem;

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Ordering::*};
use lazytlb_machine::{Machine, ObjectKind, SimWord};
use lazytlb_mmu_notifier::{Contract, Mirror, Node};

use crate::device::{Device, Driver};
use crate::kernel::{LabNotifier, Lock, world};
use crate::names::{Client, Mutant};

/// Places a driver of this kind, for the device of this number.
pub(crate) fn place(machine: &Machine, client: Client, device: usize) -> &'static dyn Driver {
    match client {
        Client::Kvm => {
            let root = object(machine, "stage2_root");
            placed(machine, |place| kvm::Kvm::new(device, place, root))
        }
        Client::Gru => placed(machine, |place| gru::Gru::new(device, place)),
        Client::Xpmem => placed(machine, |place| xpmem::Xpmem::new(device, place)),
        Client::Odp => {
            let child = object(machine, "child_mr");
            placed(machine, |place| odp::Odp::new(device, place, child))
        }
        Client::Hmm => placed(machine, |place| hmm::Hmm::new(device, place)),
        Client::Pins => placed(machine, |place| pins::Pins::new(device, place)),
        Client::Rmap => placed(machine, |place| rmap::Rmap::new(device, place)),
        Client::Userptr => placed(machine, |place| userptr::Userptr::new(device, place)),
        Client::Sva => placed(machine, |place| sva::Sva::new(device, place)),
    }
}

/// Places what is made of the place that it will have.
fn placed<D: Driver + 'static>(machine: &Machine, new: impl Fn(NonNull<D>) -> D) -> &'static dyn Driver {
    let cache = machine.create_cache("subscriber", ObjectKind::Subscriber, 1, |_| new(NonNull::dangling()));
    let place = machine.alloc_at_setup(cache);
    // SAFETY: nobody else has it yet.
    unsafe { place.write(new(place)) };
    // SAFETY: in the arena, which is kept as long as the machine runs.
    unsafe { place.as_ref() }
}

/// Something that a driver has beside itself.
fn object(machine: &Machine, name: &'static str) -> NonNull<SimWord<usize>> {
    machine.alloc_at_setup(machine.create_cache(name, ObjectKind::Other, 1, |_| AtomicWord::new(0)))
}

/// A driver's memory is freed.
fn freed<D>(machine: &Machine, driver: &'static D) {
    machine.free(NonNull::from(driver), Location::caller());
}

/// The device of a driver.
fn device(index: usize) -> &'static Device {
    &world().devices[index]
}

/// The address space goes: a driver drops all that it maps, and maps nothing any more. Says whether it has done so before, unless it does nothing.
fn released(device: &Device, lock: &Lock, dead: &SimWord<usize>) -> Option<bool> {
    device.is_called();
    if world().has(Mutant::UnregistersInRelease) {
        world().leave_former(device);
    }
    let mut was_dead = None;
    if !world().has(Mutant::NoRelease) {
        lock.lock();
        was_dead = Some(dead.load(Relaxed) != 0);
        dead.store(1, Relaxed);
        device.zap(device.entries.clone());
        device.unlock(lock);
    }
    device.is_released();
    was_dead
}

/// The node of who mirrors page tables.
fn mirror<D: Mirror<LabNotifier> + 'static>(place: NonNull<D>) -> Node<LabNotifier> {
    // SAFETY: the driver has the node, and is freed with it.
    unsafe { Node::new(Contract::Mirror(place)) }
}
