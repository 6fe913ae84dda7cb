//! VMDK images, in.

use std::fs;
use std::process::Command;

use avhdx_testkit::vmdk::descriptor;

use crate::common::{Folder, flats};

/// What QEMU says; `None` if it is not there.
fn qemu(folder: &Folder, program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).current_dir(folder.file(".")).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(output.status.success(), "{program} {args:?}: {text}");
            Some(text)
        }
        Err(_) => {
            assert!(std::env::var_os("AVHDX_INTEROP").is_none(), "no {program} here");
            None
        }
    }
}

#[test]
fn a_disk_of_vmware_comes_in() {
    let folder = Folder::with_chain();
    folder.run("convert l2.vhdx flat.raw").expect(0);
    for kind in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized"] {
        let (image, options) = (format!("{kind}.vmdk"), format!("subformat={kind}"));
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", &options, "flat.raw", &image];
        if qemu(&folder, "qemu-img", &args).is_none() {
            return;
        }
        assert!(folder.run(&format!("read {image}")).expect(0).stdout == flats()[2], "{kind}");
        folder.run(&format!("compare l2.vhdx {image}")).expect(0).prints("the same");
        folder.run(&format!("convert {image} {kind}.vhdx --verify")).expect(0);
        folder.run(&format!("compare {kind}.vhdx l2.vhdx")).expect(0);
        folder.run(&format!("diff {image} l2.vhdx")).expect(0);
        folder.run(&format!("measure {image}")).expect(0);
        folder.run(&format!("info {image}")).expect(0).prints(&format!("VMDK, {kind}"));
        folder.run(&format!("info {image} --chain")).expect(0).prints("  extent  ");
        fs::rename(folder.file(&image), folder.file("other")).unwrap();
        assert!(folder.run("read -f vmdk other").expect(0).stdout == flats()[2], "{kind}");
    }
    // The file with the bytes, not the one with the description.
    let map = folder.run("map -f vmdk other --json").expect(0).text();
    assert!(map.contains("\"image\":\"./other\"") || map.contains("other\""), "{map}");
    // Nothing goes out.
    folder.run("convert l2.vhdx out.vmdk").expect(2).says("cannot be written").says("qemu-img");
    folder.run("convert l2.vhdx out -O vmdk").expect(2);
    folder.run("info other@-1 -f vmdk").expect(2).says("only images of VHDX have points in time");
}

#[test]
fn files_inside_are_listed_and_read() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    folder.run("convert pc.vhdx pc.raw").expect(0);
    if qemu(&folder, "qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "pc.raw", "pc.vmdk"])
        .is_none()
    {
        return;
    }
    let wanted = folder.run("ls pc.vhdx -R").expect(0).text();
    assert_eq!(folder.run("ls pc.vmdk -R").expect(0).text(), wanted);
    let wanted = folder.run("cat pc.vhdx notes.txt").expect(0).stdout;
    assert!(folder.run("cat pc.vmdk notes.txt").expect(0).stdout == wanted);
    folder.run("cp pc.vmdk notes.txt copy.txt").expect(0);
    assert!(fs::read(folder.file("copy.txt")).unwrap() == wanted);
}

#[test]
fn parents_and_extents_are_opened_where_a_flag_says_so() {
    let folder = Folder::new();
    if qemu(&folder, "qemu-img", &["create", "-q", "-f", "vmdk", "base.vmdk", "4M"]).is_none() {
        return;
    }
    qemu(&folder, "qemu-io", &["-f", "vmdk", "-c", "write -P 7 0 128k", "base.vmdk"]);
    let args = ["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "tip.vmdk"];
    qemu(&folder, "qemu-img", &args);
    qemu(&folder, "qemu-io", &["-f", "vmdk", "-c", "write -P 8 64k 64k", "tip.vmdk"]);
    let run = folder.run("convert tip.vmdk out.vhdx").expect(5);
    run.says("opened only where asked").says("avhdx convert tip.vmdk out.vhdx --confine .");
    folder.run("convert tip.vmdk out.vhdx --confine .").expect(0);
    let bytes = folder.run("read out.vhdx").expect(0).stdout;
    assert!(bytes[..65_536].iter().all(|byte| *byte == 7));
    assert!(bytes[65_536..131_072].iter().all(|byte| *byte == 8));
    assert!(bytes[131_072..].iter().all(|byte| *byte == 0));
    folder.run("info tip.vmdk").expect(0).prints("base.vmdk");
    let info = folder.run("info tip.vmdk --chain --confine . --json").expect(0).json();
    assert_eq!(info["images"].as_array().unwrap().len(), 2);
    let map = folder.run("map tip.vmdk --confine . --json").expect(0).text();
    assert!(map.contains("base.vmdk") && map.contains("tip.vmdk"), "{map}");
}

#[test]
fn extents_come_from_the_folder_alone() {
    let folder = Folder::new();
    fs::create_dir(folder.file("vm")).unwrap();
    fs::write(folder.file("secret"), [7; 512]).unwrap();
    fs::write(folder.file("vm/own"), [8; 512]).unwrap();
    let lines = ["RW 1 FLAT \"own\" 0", "RW 1 FLAT \"../secret\" 0"];
    fs::write(folder.file("vm/a.vmdk"), descriptor("custom", 1, None, &lines)).unwrap();
    let run = folder.run("read vm/a.vmdk").expect(5);
    let run =
        run.says("does not lie in the folder of the image").says("../secret").says("--confine");
    assert!(run.stdout.is_empty());
    let bytes = folder.run("read vm/a.vmdk --confine .").expect(0).stdout;
    assert_eq!(bytes, [[8; 512], [7; 512]].concat());
    let map = folder.run("map vm/a.vmdk --confine . --json").expect(0).text();
    assert!(map.contains("own\"") && map.contains("secret\""), "{map}");
    // An output that is one of the inputs.
    folder.run("convert vm/a.vmdk vm/own -O raw --overwrite --confine .").expect(7);
    assert_eq!(fs::read(folder.file("vm/own")).unwrap(), [8; 512]);
    let facts = folder.run("info vm/a.vmdk").expect(0);
    facts.prints("2 extents").prints("../secret: flat");
}
