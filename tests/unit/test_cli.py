"""The command: its help, and one clear error for each kind of bad input."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.cli import app, main
from pipeline.cli.app import exports

COMMANDS = sorted(
    [c.name or c.callback.__name__ for c in app.registered_commands]
    + [f"export {c.name}" for c in exports.registered_commands]
)
VOXELS = ("--voxel-size", "8,8,30")


@dataclass
class Result:
    """What an invocation of the command came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def em(monkeypatch, capsys):
    """Run the command within this process, as the installed script does."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["em", *map(str, arguments)])
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def refused(em, tmp_path):
    """Insist that an invocation ends with one clear error and leaves nothing done."""

    def run(*arguments, words, status=2):
        result = em(*arguments)
        assert result.status == status, result.out + result.err
        # Lines of progress may come before, none after.
        message = result.err[result.err.rindex("em: ") :]
        assert "Traceback" not in result.err
        assert "Error" not in message, "the name of a class helps nobody"
        assert len(message.splitlines()) == 1, message
        for word in words:
            assert word in message, message
        done = [p for p in tmp_path.rglob("done/*.json")]
        assert not done
        return message

    return run


@pytest.fixture
def image(tmp_path):
    """A uint8 volume of 40 x 30 x 8 voxels."""
    path = tmp_path / "image.npy"
    values = np.random.default_rng(0).integers(1, 255, (8, 30, 40), dtype=np.uint8)
    np.save(path, values)
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


# -- help ------------------------------------------------------------------------------


def plain(text):
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", text).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(em, command):
    result = em(*command.split(), "--help")
    assert result.status == 0
    assert f"Example: em {command} " in plain(result.out)
    assert result.err == ""


def test_the_version_is_that_of_the_package_or_of_the_image(em, monkeypatch):
    monkeypatch.delenv("EM_CODE_VERSION", raising=False)
    assert em("--version").out.strip() == version("em-pipeline")
    monkeypatch.setenv("EM_CODE_VERSION", "7.8.9")
    assert em("--version").out.strip() == "7.8.9"


def test_the_commands_are_those_promised(em):
    assert set(COMMANDS) >= {
        *("ingest", "reconstruct", "plan", "run", "work", "status", "failures"),
        *("retry", "verify", "eval", "view", "export tables", "export pychunkedgraph"),
    }
    result = em("--help")
    assert all(command.split()[0] in result.out for command in COMMANDS)


@pytest.mark.parametrize(
    "command", ["ingest", "reconstruct", "plan", "run", "status", "failures", "retry"]
)
def test_what_a_program_reads_has_json(em, command):
    assert "--json" in plain(em(command, "--help").out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ingets"], "No such command 'ingets'. Did you mean 'ingest'?"),
        (["ingest"], "Missing argument 'source'"),
        (["status"], "Missing option '--root'"),
        (["run", "recipe.toml", "--rooot", "x"], "No such option: --rooot"),
        (["verify", "--root"], "Option '--root' requires an argument"),
        (["run", "recipe.toml", "--root", "x", "--workers", "two"], "for '--workers'"),
        (["run", "recipe.toml", "--root", "x", "--workers", "0"], "for '--workers'"),
        (["work", "--queue", "fq://queue", "--lease-seconds", "0"], "'--lease-seconds'"),
    ],
)
def test_misuse_is_explained(em, arguments, said):
    result = em(*arguments)
    assert result.status == 2
    assert said in plain(result.err)
    assert "Traceback" not in result.err


def test_the_installed_command_ends_with_the_status_and_one_line(tmp_path):
    executable = Path(sys.executable).parent / "em"
    done = subprocess.run(
        [executable, "status", "--root", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"em: .*none holds no run; start one with em run .*\n", done.stderr)


# -- sources ---------------------------------------------------------------------------


def test_a_good_source_is_taken(em, image, root):
    result = em("ingest", image, "--root", root, *VOXELS, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["run"] == "ingest-image"
    assert em("verify", "--root", root).status == 0


def test_a_source_is_found_again_from_another_folder(em, image, root, monkeypatch):
    monkeypatch.chdir(image.parent)
    assert em("ingest", image.name, "--root", root, *VOXELS).status == 0
    monkeypatch.chdir("/")
    box = ("--bbox", "0,0,0,40,30,8", "--stage", "image")
    result = em("run", "ingest-image", "--root", root, *box)
    assert result.status == 0, result.err


def test_truncated_tiff(refused, tmp_path, root):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.ones((8, 64, 64), np.uint8), photometric="minisblack")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused("ingest", path, "--root", root, *VOXELS, words=["stack.tif", "copy it again"])
    assert not root.exists()


def test_truncated_npy(refused, image, root):
    content = image.read_bytes()
    image.write_bytes(content[:-100])
    refused(
        *("ingest", image, "--root", root, *VOXELS),
        words=["image.npy", f"{len(content) - 100} of {len(content)} bytes"],
    )
    assert not root.exists()


def test_an_image_of_uint16_needs_a_range(refused, em, tmp_path, root):
    path = tmp_path / "image.npy"
    np.save(path, np.full((8, 30, 40), 1000, np.uint16))
    refused(
        *("ingest", path, "--root", root, *VOXELS),
        words=["uint16", "uint8", "--intensity-range LOW,HIGH"],
    )
    assert not root.exists()
    scaled = ("--intensity-range", "0,2000")
    assert em("ingest", path, "--root", root, *VOXELS, *scaled).status == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("255,0", ["(255.0, 0.0)", "LOW < HIGH"]),
        ("7", ["'7'", "2 numbers"]),
        ("a,b", ["'a,b'", "2 numbers"]),
    ],
)
def test_a_range_that_cannot_be(refused, image, root, given, words):
    arguments = ("ingest", image, "--root", root, *VOXELS, "--intensity-range", given)
    refused(*arguments, words=words)
    assert not root.exists()


def test_labels_of_float(refused, tmp_path, root):
    path = tmp_path / "labels.npy"
    np.save(path, np.ones((8, 30, 40), np.float32))
    refused(
        *("ingest", path, "--root", root, *VOXELS, "--kind", "segmentation"),
        words=["float32", "integers"],
    )
    assert not root.exists()


@pytest.fixture
def sections(tmp_path):
    """A folder of three sections, of which one is smaller."""
    folder = tmp_path / "sections"
    folder.mkdir()
    for z, height in enumerate((31, 30, 31)):
        Image.fromarray(np.ones((height, 40), np.uint8)).save(folder / f"s{z}.png")
    return folder


def test_sections_of_different_sizes_are_named(em, sections, root):
    said = em("ingest", sections, "--root", root, *VOXELS, "--mips", "0")
    assert said.status == 0
    assert "smaller than 40 x 31: s1.png (40 x 30)" in said.err


def test_sections_of_different_types(refused, sections, root):
    Image.fromarray(np.ones((31, 40), np.uint16)).save(sections / "s2.png")
    refused(
        *("ingest", sections, "--root", root, *VOXELS),
        words=["s2.png", "uint16", "s0.png", "uint8", "one type"],
    )


def test_nan_in_an_image(refused, em, tmp_path, root):
    path = tmp_path / "image.npy"
    values = np.ones((8, 30, 40), np.float32)
    values[5, 20, 10] = np.nan
    np.save(path, values)
    refused(
        *("ingest", path, "--root", root, *VOXELS, "--intensity-range", "0,1"),
        words=["nan", "(10, 20, 5)", "em retry"],
        status=1,
    )
    assert em("verify", "--root", root).status == 1
    status = json.loads(em("status", "--root", root, "--json").out)["stages"]
    assert (status[0]["done"], status[0]["failed"]) == (0, 1)


def test_negative_ids(refused, tmp_path, root):
    path = tmp_path / "labels.npy"
    values = np.ones((8, 30, 40), np.int32)
    values[5, 20, 10] = -7
    np.save(path, values)
    arguments = ("ingest", path, "--root", root, *VOXELS)
    refused(*arguments, words=["id -7", "or more"], status=1)


def test_an_empty_volume(refused, tmp_path, root):
    path = tmp_path / "image.npy"
    np.save(path, np.ones((0, 30, 40), np.uint8))
    refused("ingest", path, "--root", root, *VOXELS, words=["image.npy", "(40, 30, 0)"])
    assert not root.exists()


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ("0,0,0,41,30,8", ["0,0,0,41,30,8", "0,0,0,40,30,8", "image.npy"]),
        ("-1,0,0,40,30,8", ["-1,0,0,40,30,8", "0,0,0,40,30,8"]),
        ("50,50,50,60,60,60", ["50,50,50,60,60,60", "0,0,0,40,30,8"]),
        ("5,5,5,5,6,6", ["5,5,5,5,6,6"]),
        ("9,9,5,0,0,0", ["(9, 9, 5)", "(0, 0, 0)", "lower corner first"]),
        ("0,0,0,40,30", ["'0,0,0,40,30'", "x0,y0,z0,x1,y1,z1"]),
        ("the middle", ["'the middle'", "x0,y0,z0,x1,y1,z1"]),
        ("0,0,0,4.5,3,3", ["'0,0,0,4.5,3,3'", "x0,y0,z0,x1,y1,z1"]),
    ],
)
def test_a_bbox_that_cannot_be(refused, image, root, bbox, words):
    refused("ingest", image, "--root", root, *VOXELS, f"--bbox={bbox}", words=words)
    assert not root.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["image.npy", "how large its voxels are", "--voxel-size X,Y,Z"]),
        (["--voxel-size=-8,8,30"], ["-8.0", "positive"]),
        (["--voxel-size=8,8,0"], ["0.0", "positive"]),
        (["--voxel-size=nan,8,8"], ["nan", "positive"]),
        (["--voxel-size=inf,8,8"], ["inf", "positive"]),
        (["--voxel-size=8,8"], ["'8,8'", "3 numbers"]),
        (["--voxel-size=small"], ["'small'", "3 numbers"]),
    ],
)
def test_a_voxel_size_that_cannot_be(refused, image, root, given, words):
    refused("ingest", image, "--root", root, *given, words=words)
    assert not root.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.tif", ["absent.tif", "no such file"]),
        ("notes.txt", ["notes.txt", "'.txt'", "TIFF"]),
        ("file.h5:raw", ["file.h5", "no such file"]),
        ("ftp://host/volume", ["ftp://", "https://"]),
    ],
)
def test_a_source_that_is_not_there(refused, tmp_path, root, name, words):
    (tmp_path / "notes.txt").write_text("no image")
    source = name if "://" in name else tmp_path / name
    refused("ingest", source, "--root", root, *VOXELS, words=words)
    assert not root.exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--chunk=8,8", ["three", "x, y, z"]),
        ("--chunk=big", ["'big'"]),
        ("--chunk=0,8,8", ["(0, 8, 8)", "positive"]),
        ("--storage-chunk=0,8,8", ["(0, 8, 8)", "positive"]),
        ("--chunk=30,8,8", ["(30, 8, 8)", "does not divide"]),
        ("--encoding=gif", ["'gif'", "png"]),
        ("--kind=photograph", ["'photograph'", "segmentation"]),
        ("--encoding=fpzip", ["fpzip", "uint8", "float32"]),
        ("--mips=-1", ["mips"]),
        ("--memory-limit=0", ["memory-limit"]),
        ("--layer=../image", ["../image"]),
    ],
)
def test_an_option_that_cannot_be(em, refused, image, root, option, words):
    if option.startswith("--memory-limit"):
        result = em("ingest", image, "--root", root, *VOXELS, option)
        assert result.status == 2, "ingest has no such option"
        return
    storage = [] if "storage" in option else ["--storage-chunk=8,8,8"]
    result = em("ingest", image, "--root", root, *VOXELS, *storage, option)
    assert result.status == 2, result.out
    assert "Traceback" not in result.err
    assert all(word in result.err for word in words), result.err
    assert not root.exists()


# -- roots -----------------------------------------------------------------------------


def test_a_root_below_a_file(refused, image, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        *("ingest", image, "--root", tmp_path / "file" / "root", *VOXELS),
        words=[str(tmp_path / "file"), "a file stands where a folder is needed"],
    )


def test_a_root_that_cannot_be_written(refused, image):
    if not Path("/proc/self").exists():
        pytest.skip("/proc, where nobody can write, is not on this system")
    arguments = ("ingest", image, "--root", "/proc/self/root-of-a-run", *VOXELS)
    refused(*arguments, words=["/proc/", "check the location"])


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk],
        capture_output=True,
        check=False,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(em, tmp_path, tiny_disk):
    path = tmp_path / "image.npy"
    values = np.random.default_rng(0).integers(1, 255, (8, 256, 256), dtype=np.uint8)
    np.save(path, values)
    root = tiny_disk / "root"
    options = ("--chunk", "128,128,8", "--storage-chunk", "64,64,8", "--mips", "0")
    result = em("ingest", path, "--root", root, *VOXELS, *options)
    assert result.status == 2
    message = result.err[result.err.rindex("em: ") :]
    assert "no space left on device; free space there" in message
    assert len(message.splitlines()) == 1
    verified = json.loads(em("verify", "--root", root, "--json").out)
    assert not verified["complete"]
    (stage,) = verified["runs"][0]["stages"]
    assert 0 < stage["done"] < stage["tasks"]
    assert {f["kind"] for f in stage["faults"]} == {"missing"}, "nothing half-written"

    subprocess.run(["mount", "-o", "remount,size=4m", tiny_disk], check=True)
    assert em("run", "ingest-image", "--root", root).status == 0
    assert em("verify", "--root", root).status == 0


@pytest.mark.parametrize(
    "command", ["status", "failures", "retry", "verify", "eval", "view"]
)
def test_a_root_without_a_run(refused, tmp_path, command):
    arguments = (command, "--root", tmp_path / "root")
    refused(*arguments, words=["root holds no run", "em run"])


@pytest.mark.parametrize(
    "command", ["status", "failures", "retry", "verify", "eval", "view"]
)
def test_a_run_of_another_name(em, image, root, command):
    assert em("ingest", image, "--root", root, *VOXELS, "--mips", 0).status == 0
    result = em(command, "--root", root, "other")
    assert result.status == 2
    assert "holds no run other; it holds ingest-image" in result.err


def test_a_root_that_holds_another_run(em, image, root):
    assert em("ingest", image, "--root", root, *VOXELS).status == 0
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for other in ("8,8,40", "4,4,30"):
        result = em("ingest", image, "--root", root, "--voxel-size", other)
        assert result.status == 2
        assert "image/0_0_0_0 was written with another configuration" in result.err
        assert "--replace" in result.err
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    replaced = ("--voxel-size", "8,8,40", "--replace")
    assert em("ingest", image, "--root", root, *replaced).status == 0
    assert em("verify", "--root", root).status == 0


def test_scores_without_a_truth(em, image, root):
    assert em("ingest", image, "--root", root, *VOXELS, "--mips", 0).status == 0
    result = em("eval", "--root", root)
    assert result.status == 2
    assert "overlaps" in result.err
    assert "--truth" in result.err


def test_a_model_that_is_not_there(refused, image, root):
    refused(
        *("reconstruct", image, "--root", root, *VOXELS, "--model", "nowhere"),
        words=["affinities", "no model nowhere", "models/nowhere"],
    )
    assert not root.exists()


# -- recipes ---------------------------------------------------------------------------

RECIPE = """
name = "copy"

[grid]
bounds = { start = [0, 0, 0], stop = [40, 30, 8] }
chunk = [20, 30, 8]

[layers]
source = "SOURCE"

[[stage]]
use = "ingest"
source = "source"
output = "image"
voxel_size_nm = [8, 8, 30]
storage_chunk = [20, 30, 8]
"""


@pytest.fixture
def recipe(tmp_path, image):
    def write(*replacements):
        text = RECIPE.replace("SOURCE", str(image))
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_a_good_recipe_runs(em, recipe, root):
    assert em("run", recipe(), "--root", root).status == 0


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "storage_chunk",
            "storage_chunks",
            ["mean 'storage_chunk'?", "sharded,"],
        ),
        ('output = "image"', "", ["stage 1 (ingest)", "output"]),
        ('use = "ingest"', 'use = "ingets"', ["'ingets'", "ingest, defects"]),
        ('use = "ingest"', "", ["stage 1", "use", "ingest"]),
        ("[grid]", "[grids]", ["'grids'", "grid, layers, name, stage"]),
        (
            "chunk = [20, 30, 8]",
            "chunk = [20, 30]",
            ["chunk: [20, 30] is not three"],
        ),
        ("stop = [40, 30, 8]", "stop = [-40, 30, 8]", ["(-40, 30, 8)", "lower corner"]),
        ("stop = [40, 30, 8]", "stop = [41, 30, 8]", ["0,0,0,41,30,8", "0,0,0,40,30,8"]),
        ('name = "copy"', 'name = "a/b"', ["'a/b'", "letters"]),
        ("[8, 8, 30]", "[8, 8, -30]", ["-30", "positive"]),
        ('source = "source"', 'source = "sauce"', ["sauce", "[layers]"]),
        ("[[stage]]", "[[stage]", ["is not TOML", "line"]),
        ("image.npy", "absent.npy", ["absent.npy", "no such file"]),
    ],
)
def test_a_recipe_that_cannot_work(em, recipe, root, command, old, new, words):
    result = em(command, recipe((old, new)), "--root", root)
    assert result.status == 2, result.out
    assert result.err.startswith("em: ")
    assert "Traceback" not in result.err
    assert "recipe.toml" in result.err or "copy" in result.err
    assert all(word in result.err for word in words), result.err
    assert not root.exists()


def test_all_faults_at_once(em, recipe, root):
    path = recipe(
        ("storage_chunk", "storage_chunks"), ("[8, 8, 30]", '"small"'), ('"copy"', '"a/b"')
    )
    lines = em("plan", path, "--root", root).err.splitlines()
    assert len(lines) >= 3
    assert all("recipe.toml: " in line for line in lines)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_recipe_that_is_not_there(refused, root, tmp_path, command):
    path = tmp_path / "absent.toml"
    arguments = (command, path, "--root", root)
    refused(*arguments, words=["absent.toml", "give the path of a recipe"])
    assert not root.exists()


def test_a_recipe_that_is_a_folder(refused, root, tmp_path):
    refused("run", tmp_path, "--root", root, words=[str(tmp_path), "Is a directory"])


@pytest.mark.parametrize("url", ["http://queue", "queue", "sqs:name"])
def test_a_queue_that_is_none(refused, recipe, root, url):
    words = [repr(url), "fq://FOLDER or sqs://NAME"]
    refused("run", recipe(), "--root", root, "--queue", url, words=words)
    refused("work", "--queue", url, words=words)


def test_a_box_outside_a_run(refused, recipe, root):
    arguments = ("run", recipe(), "--root", root, "--bbox", "0,0,0,99,9,9")
    refused(*arguments, words=["0,0,0,99,9,9", "0,0,0,40,30,8"])
    assert not root.exists()
