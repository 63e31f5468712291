"""Sound: what is decoded is compared with a log-mel spectrogram written out by hand, and with transformers' own."""

import tracemalloc
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from transformers import audio_utils

from equipoise.datasets.audio import log_mel
from equipoise.datasets.bad_value import BadValueError
from equipoise.datasets.columns import encode
from equipoise.datasets.prepare import prepare
from equipoise.datasets.reading import Reader
from equipoise.datasets.sources import Source
from equipoise.models.build import EncoderConfig, ModelConfig, build_encoder, build_model
from equipoise.models.errors import EquipoiseError
from equipoise.models.modality import Modality

RATE = 16_000
SPEECH = Modality(name="speech", kind="audio", shape=(40,), max_length=300)
SILENCE = np.log(1e-10)


def sound_file(samples, rate=RATE, kind="WAV", subtype=None):
    file = BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def tone(hertz, seconds=1.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(samples=9_000, seed=0):
    return np.round(np.random.default_rng(seed).normal(0, 0.1, samples) * 2**15) / 2**15  # exact in 16 bits


def mel_edges(bins, rate):
    """bins + 2 frequencies in Hz, equally far apart in mel: bin i rises from edge i to i + 1 and falls to i + 2."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    return 700 * (10 ** (np.arange(bins + 2) * top / (bins + 1) / 2595) - 1)


def by_hand(samples, bins=40, rate=RATE):
    """The definition in datasets/audio.py, a frame and a bin at a time."""
    window, hop, points = rate // 40, rate // 100, 512
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * i / window) for i in range(window)]
    edges = mel_edges(bins, rate)
    out = []
    for centre in range(0, len(samples), hop):
        frame = np.zeros(points)
        for i in range(window):
            at = centre - window // 2 + i
            frame[i] = hann[i] * samples[at] if 0 <= at < len(samples) else 0
        power = np.abs(np.fft.rfft(frame)) ** 2
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            energy = 0.0
            for k, p in enumerate(power):
                f = k * rate / points
                energy += p * max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle)))
            row.append(np.log(max(energy, 1e-10)))
        out.append(row)
    return np.array(out)


def test_a_log_mel_spectrogram_is_what_it_is_by_hand():
    samples = noise(3_300)
    found = log_mel(SPEECH, sound_file(samples))
    assert found.dtype == np.float32
    assert found.shape == (21, 40)  # a frame begins every 160 samples
    np.testing.assert_allclose(found, by_hand(samples), rtol=1e-5, atol=1e-5)


def test_a_log_mel_spectrogram_is_that_of_transformers():
    samples = noise(16_000)
    theirs = audio_utils.spectrogram(
        samples,
        audio_utils.window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        pad_mode="constant",
        mel_filters=audio_utils.mel_filter_bank(257, 40, 0, 8000, RATE, norm=None, mel_scale="htk"),
        log_mel="log",
    )
    np.testing.assert_allclose(log_mel(SPEECH, sound_file(samples)), theirs.T[:100], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_tone_is_in_its_bin_while_it_sounds(hertz):
    samples = np.zeros(2 * RATE)
    samples[RATE // 2 : RATE] = tone(hertz, 0.5)
    found = log_mel(SPEECH, sound_file(samples))
    edges = mel_edges(40, RATE)
    height = np.minimum((hertz - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - hertz) / np.diff(edges)[1:])
    assert (found[52:98].argmax(axis=1) == height.argmax()).all()
    np.testing.assert_allclose(found[[*range(48), *range(103, 200)]], SILENCE, rtol=1e-6)
    # A sine of amplitude a through a window w has the power (a sum(w) / 2)^2 at its frequency.
    assert found[75].max() == pytest.approx(2 * np.log(0.5 * 200 / 2), abs=1.0)


def test_wav_and_flac_of_the_same_samples_decode_equal_and_ogg_nearly():
    samples = noise()
    wav, flac, ogg = (log_mel(SPEECH, sound_file(samples, kind=kind)) for kind in ("WAV", "FLAC", "OGG"))
    np.testing.assert_array_equal(wav, flac)
    assert np.abs(ogg - wav).mean() < 0.5
    assert np.corrcoef(ogg.ravel(), wav.ravel())[0, 1] > 0.9
    stereo = np.stack([samples + 0.25, samples - 0.25], axis=1)
    np.testing.assert_allclose(log_mel(SPEECH, sound_file(stereo, subtype="FLOAT")), wav, atol=1e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_tone(rate):
    ours = log_mel(SPEECH, sound_file(tone(1000), subtype="FLOAT"))
    other = log_mel(SPEECH, sound_file(tone(1000, rate=rate), rate, subtype="FLOAT"))
    assert other.shape == ours.shape == (100, 40)
    loud = ours[50] > ours[50].max() - 5
    np.testing.assert_allclose(other[5:95, loud], ours[5:95, loud], atol=0.02)
    assert (other[5:95, ~loud].max(axis=1) < ours[50].max() - 4).all()


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_cut_sound_has_the_first_frames_of_the_whole(rate):
    data = sound_file(noise(3 * rate), rate)
    short = SPEECH.model_copy(update={"max_length": 70})
    np.testing.assert_allclose(log_mel(short, data), log_mel(SPEECH, data)[:70], atol=1e-4)
    assert log_mel(SPEECH, sound_file([0.1], rate)).shape == (1, 40)


def test_a_small_file_of_a_long_sound_does_not_fill_the_memory():
    file = BytesIO()
    with soundfile.SoundFile(file, "w", 48_000, 1, format="FLAC", subtype="PCM_16") as out:
        for _ in range(600):
            out.write(np.zeros(48_000, np.int16))
    data = file.getvalue()
    assert len(data) < 2**20
    log_mel(SPEECH, data)
    tracemalloc.start()
    assert encode(SPEECH, data) == data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # all of it would be 230 MB


PLANTED = (
    Modality(name="noise", kind="audio", shape=(8,), max_length=40, transform="standardize"),
    Modality(name="pitch", shape=(1,)),
)


def planted(value):
    """A source of 60 rows; the sound of row r7 is `value`."""
    rows = (
        {
            "source_id": f"r{i}",
            "target": "high" if i % 2 else "low",
            "pitch": [float(i)],
            "split": ("train", "validation", "test")[i % 3],
            "noise": value if i == 7 else sound_file(noise(1_600 + 160 * i, seed=i), kind="FLAC"),
        }
        for i in range(60)
    )
    return Source("planted", PLANTED, rows)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare a source with a planted sound."""

    def go(value, **options):
        monkeypatch.setattr("equipoise.datasets.prepare._source", lambda *_: planted(value))
        return prepare("planted", tmp_path / "data", **options)

    return go


WAV = sound_file(noise(1_600))
OGG = sound_file(noise(30_000), kind="OGG")
FLAC = sound_file(noise(30_000), kind="FLAC")
SPOT = 4 * len(OGG) // 5
DAMAGED = OGG[:SPOT] + bytes(b ^ 90 for b in OGG[SPOT : SPOT + 200]) + OGG[SPOT + 200 :]
NAN = sound_file(np.full(800, np.nan), subtype="FLOAT")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("a.wav", r"is audio, but the value is of type str: give the bytes of an OGG, WAV or FLAC file\. Or leave it out"),
        (b"not a sound at all", r"is no OGG, WAV or FLAC file\. Or leave it out"),
        (b"RIFF\x10\0\0\0WAVEfmt 123456789", r"does not decode as OGG, WAV or FLAC \(.*\)\. Or leave it out"),
        (WAV[:1000], r"is cut off: 1000 of its 3244 bytes are there\. Or leave it out"),
        (OGG[:-100], rf"is cut off: {len(OGG) - 100} of its {len(OGG)} bytes are there\. Or leave it out"),
        (DAMAGED, r"is damaged: it holds less sound than its header says\. Or leave it out"),
        (FLAC[:30_000], r"does not decode as OGG, WAV or FLAC \(.*\)\. Or leave it out"),
        (sound_file(np.zeros((0,))), r"holds no sound: leave it null where it is absent\. Or leave it out"),
        (sound_file(np.zeros((9, 9))), r"has 9 channels at 16000 Hz: up to 8 channels"),
        (sound_file(np.zeros(9), 500), r"has 1 channels at 500 Hz: up to 8 channels at 1000 to 384000 Hz"),
        (NAN, r"holds a sample that is not finite\. Or leave it out"),
    ],
    ids=["text", "no sound", "no WAV", "cut WAV", "cut OGG", "damaged", "cut FLAC", "empty", "9 channels", "500 Hz", "NaN"],
)  # fmt: skip
def test_a_sound_that_cannot_be_names_its_row(value, sentence, prepared):
    with pytest.raises(EquipoiseError, match=r"^Row 7 \('r7', validation\): modality 'noise' " + sentence):
        prepared(value)


def test_skipped_sounds_are_listed_with_reasons_that_do_not_change(prepared):
    reasons = [
        prepared(b"RIFF\x10\0\0\0WAVEfmt 123456789", on_bad="skip", overwrite=True).skipped[0].reason for _ in range(2)
    ]
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("modality 'noise' does not decode as OGG, WAV or FLAC (")


def test_what_is_stored_is_the_file_and_what_is_fitted_is_of_train_rows_a_mel_bin(prepared, tmp_path):
    manifest = prepared(None)
    reader = Reader(tmp_path / "data")
    decoded = {}
    for split in ("train", "validation", "test"):
        ids = reader.source_ids(split, 0)
        stored = reader._file(manifest.splits[split].shards[0]).read()["noise"].to_pylist()
        columns = reader.read_chunk(split, 0)
        assert columns["noise"].shape == (20, 40, 8)
        for i, name in enumerate(ids):
            number = int(name[1:])
            if number == 7:
                assert stored[i] is None
                assert columns["present"][i].tolist() == [False, True]
                assert columns["noise_length"][i] == 0
                assert not columns["noise"][i].any()
                continue
            data = sound_file(noise(1_600 + 160 * number, seed=number), kind="FLAC")
            assert stored[i] == data
            length = min(10 + number, 40)
            assert columns["noise_length"][i] == length
            decoded[split, name] = log_mel(manifest.modalities[0], data)
            assert len(decoded[split, name]) == length
    frames = np.concatenate([x for (split, _), x in decoded.items() if split == "train"]).astype(np.float64)
    mean, deviation = (np.array(manifest.fitted["noise"][key]) for key in ("mean", "deviation"))
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, frames.std(axis=0), rtol=1e-6)
    ids = reader.source_ids("test", 0)
    columns = reader.read_chunk("test", 0)
    x = columns["noise"][3, : columns["noise_length"][3]]
    np.testing.assert_allclose(x, (decoded["test", ids[3]] - mean) / deviation, rtol=1e-4, atol=1e-4)
    assert not columns["noise"][3, columns["noise_length"][3] :].any()


@pytest.mark.parametrize("kind", ["auto", "gru", "cnn1d", "mlp"])
def test_encoders_take_sound_as_a_sequence(kind):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(kind=kind, out_features=5), SPEECH)
    assert type(encoder).__name__ == {"auto": "GRU", "gru": "GRU", "cnn1d": "CNN1d", "mlp": "MLP"}[kind]
    x, length = torch.randn(3, 300, 40), torch.tensor([300, 20, 0])
    found = encoder(x, length)
    assert found.shape == (3, 5)
    x[1, 20:] = torch.nan  # what stands beyond the length is never read
    torch.testing.assert_close(encoder(x, length), found)
    with pytest.raises(EquipoiseError, match=r"Encoder kind 'cnn2d' has no meaning for modality 'speech' \(audio\)"):
        build_encoder(EncoderConfig(kind="cnn2d"), SPEECH)


def test_early_fusion_takes_sound():
    model = build_model(ModelConfig(kind="early", dim=8, heads=2), [SPEECH], 4)
    inputs = {"speech": torch.randn(2, 300, 40), "speech_length": torch.tensor([300, 10])}
    assert model(inputs, torch.ones(2, 1, dtype=torch.bool)).logits.shape == (2, 4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "audio", "shape": (40,)}, r"'a' is audio: give its max_length"),
        ({"kind": "audio", "max_length": 9}, r"'a' is audio: give its shape as \(mel bins,\), such as \(40,\), not \(\)"),
        ({"kind": "audio", "max_length": 9, "shape": (4, 4)}, r"not \(4, 4\)"),
        ({"kind": "audio", "max_length": 9, "shape": (4,), "sample_rate": 20}, r"sample_rate=20: give 1000 to 96000"),
        ({"kind": "sequence", "max_length": 9, "sample_rate": 16000}, r"'a' is no audio: sample_rate has no meaning"),
    ],
)  # fmt: skip
def test_wrong_fields_of_audio_are_named(fields, sentence):
    with pytest.raises(EquipoiseError, match=sentence):
        Modality(name="a", **fields)


def test_more_mel_bins_than_frequencies_are_refused():
    with pytest.raises(
        EquipoiseError, match=r"'a' asks for 200 mel bins, and at a sample_rate of 16000 some would have"
    ):
        log_mel(Modality(name="a", kind="audio", shape=(200,), max_length=9), WAV)
    assert Modality(name="a", kind="audio", shape=(40,), max_length=9).sample_rate == RATE


def test_a_stored_sound_that_does_not_decode_says_that_the_shard_is_damaged():
    import pyarrow as pa

    from equipoise.datasets.columns import Decoder

    with pytest.raises(
        EquipoiseError, match="A stored audio of modality 'speech' is no OGG, WAV or FLAC file: the shard"
    ):
        Decoder(SPEECH, {})(pa.array([b"nothing"]))
    with pytest.raises(BadValueError, match="is no OGG"):
        log_mel(SPEECH, b"")
