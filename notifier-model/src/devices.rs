//! Drivers: six ways to keep a device's translations right, and one that was given up.

mod gru;
mod hmm;
mod kvm;
mod odp;
mod pins;
mod sva;
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
        Client::Kvm => placed(machine, |place| kvm::Kvm::new(device, place)),
        Client::Gru => placed(machine, |place| gru::Gru::new(device, place)),
        Client::Xpmem => placed(machine, |place| xpmem::Xpmem::new(device, place)),
        Client::Odp => placed(machine, |place| odp::Odp::new(device, place)),
        Client::Hmm => placed(machine, |place| hmm::Hmm::new(device, place)),
        Client::Pins => placed(machine, |place| pins::Pins::new(device, place)),
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

/// A driver's memory is freed.
fn freed<D>(machine: &Machine, driver: &'static D) {
    machine.free(NonNull::from(driver), Location::caller());
}

/// The device of a driver.
fn device(index: usize) -> &'static Device {
    &world().devices[index]
}

/// The address space goes: a driver drops all that it maps, and maps nothing any more.
fn released(device: &Device, lock: &Lock, dead: &SimWord<usize>) {
    device.is_called();
    if !world().has(Mutant::NoRelease) {
        lock.lock();
        dead.store(1, Relaxed);
        device.zap(device.entries.clone());
        device.unlock(lock);
    }
    device.is_released();
}

/// The node of who mirrors page tables.
fn mirror<D: Mirror<LabNotifier> + 'static>(place: NonNull<D>) -> Node<LabNotifier> {
    // SAFETY: the driver has the node, and is freed with it.
    unsafe { Node::new(Contract::Mirror(place)) }
}
