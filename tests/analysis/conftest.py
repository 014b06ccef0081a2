"""How a figure script is run."""

import importlib
import sys

import matplotlib
import pytest
import style


@pytest.fixture
def draw(monkeypatch, capsys, tmp_path):
    """draw(script, folder) runs it and gives (exit status, stdout, stderr, figures); files go to
    tmp_path/figures.


    Figures are laid out, and saved where `save` says so: as png alone, or as the script does.
    """

    def go(script, *words, save="no"):
        figures, how = [], save

        def save(figure, stem):
            figures.append(figure)
            if how == "as the script":
                return really(figure, stem)
            if how == "png":
                stem.parent.mkdir(exist_ok=True)
                figure.savefig(stem.with_suffix(".png"), dpi=200)
            else:
                figure.draw_without_rendering()
            return [stem.with_suffix(".png")]

        really = style.save
        monkeypatch.setattr(style, "save", save)
        monkeypatch.setattr(
            sys, "argv", [f"{script}.py", *map(str, words), "--out", str(tmp_path / "figures")]
        )
        status = 0
        with matplotlib.rc_context():
            try:
                style.run(importlib.import_module(script).main)
            except SystemExit as e:
                status = e.code
        monkeypatch.setattr(style, "save", really)
        return status, *capsys.readouterr(), figures

    return go
