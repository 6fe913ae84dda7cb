//! Disks that get another size while the host may crash.

use avhdx::DiffChain;
use avhdx::ops::Resize;

use super::history::{BASE, History, Layer, MIDDLE, SIZE, Scene, TIP, Tip, model_of};
use crate::driver::{KIB, MIB};

/// A base, larger, smaller within a block, and larger again.
pub fn base() -> History {
    resized(&[BASE], false, &[SIZE + MIB + 60 * KIB, 2 * MIB + 12 * KIB, SIZE])
}

/// A child with a log that is pending, over layers that have more data than its disk shows.
pub fn child() -> History {
    let tip = Layer { size: 3 * MIB + 85 * KIB, discards: &[0], ..TIP };
    resized(&[BASE, MIDDLE, tip], true, &[SIZE + MIB, MIB + 64 * KIB])
}

/// Writes before each resize, the last of which are not flushed, and after it.
fn resized(layers: &[Layer], killed: bool, sizes: &[u64]) -> History {
    let scene = Scene::new(layers, killed);
    let chain = scene.open();
    for (n, size) in sizes.iter().enumerate() {
        let seed = 10 * n as u64;
        scene.write(&chain, seed + 1, 9 * KIB, 2 * KIB);
        scene.flush(&chain);
        scene.write(&chain, seed + 2, 10 * KIB, 2 * KIB);
        let end = scene.history().model().size;
        scene.write(&chain, seed + 3, end - 3 * KIB, KIB);
        resize(&scene, &chain, *size);
        scene.write(&chain, seed + 4, 11 * KIB, 2 * KIB);
    }
    scene.flush(&chain);
    scene.write(&chain, 99, MIB + 30 * KIB, KIB);
    scene.kill(chain)
}

/// The file has the old disk or the new one, which has all that was written before.
fn resize(scene: &Scene, chain: &DiffChain, size: u64) {
    let begun = scene.host.mark();
    {
        let mut history = scene.history();
        history.begun.get_or_insert(begun);
        let mut now = history.now();
        let old = now.size;
        let mut watched = history.model().segments();
        watched.push(old..old + 8 * KIB);
        watched.push(size - 8 * KIB..size);
        let kept = watched.into_iter().map(|range| range.start..range.end.min(size));
        let kept = kept.filter(|range| !range.is_empty()).collect();
        // What is cut off does not come back, nor does what layers below have there.
        now.bytes.write(old.min(size), &vec![0; 8 * MIB as usize]);
        now.size = size;
        let (path, model) = (history.tips[0].path.clone(), history.models.len());
        history.models.push(model_of(&now, kept));
        history.tips.push(Tip { path, begun, done: usize::MAX, model });
    }
    let resized = Resize::to(size).shrink(true).run(chain).unwrap();
    assert!(resized.warnings.is_empty(), "{:?}", resized.warnings);
    let done = scene.host.mark();
    scene.history().tips.last_mut().unwrap().done = done;
}
