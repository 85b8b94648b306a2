"""The columns by which spatialdata and squidpy find a cell's label."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from made.cells import make_contents, make_slide, write

SOURCES = {
    "/data/a.zarr#label=seg_all_cytosol": "seg_all_cytosol",
    "/data/a.zarr#image=he,label=cells": "cells",
    "/data/a.zarr#label=cells,missing=fill": "cells",
    "/data/a.zarr/labels/cells": "cells",
    "/data/a.ome.zarr/labels/cells/0": "cells",
    "/data/a.zarr/labels/cells#level=1": "cells",
    "https://host/a.zarr/labels/cells": "cells",
    "/data/label=x/a.tif": "A",
    "/data/labels/cells.tif": "A",
    "/data/a.tif#c=0": "A",
    "/data/a.zarr#label=\udcff": "A",
    "array": "A",
}


def slide(name, source, metadata=None):
    made = make_slide(name, metadata)
    made.masks["cytosol"].source = source
    return made


def annotated(tmp_path, slides, n_cells=4, **more):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5sc"
    return anndata.read_h5ad(write(path, make_contents(n_cells, slides, **more)))


@pytest.mark.parametrize(("source", "region"), SOURCES.items())
def test_the_region_is_the_label_element_or_the_slide(tmp_path, source, region):
    data = annotated(tmp_path, (slide("A", source),))
    assert data.uns["spatialdata_attrs"] == {
        "region": region,
        "region_key": "region",
        "instance_key": "scportrait_cell_id",
    }
    assert isinstance(data.obs["region"].dtype, pd.CategoricalDtype)
    assert set(data.obs["region"]) == {region}


def test_regions_of_several_slides_differ(tmp_path):
    data = annotated(tmp_path, (slide("A", "a.zarr#label=cells"), slide("B", "b.zarr#label=nuclei")))
    assert data.uns["spatialdata_attrs"]["region"].tolist() == ["cells", "nuclei"]
    assert data.obs["region"].tolist() == ["cells", "cells", "nuclei", "nuclei"]
    data = annotated(tmp_path, (slide("A", "a.zarr#label=cells"), slide("B", "b.zarr#label=cells")))
    assert data.obs["region"].tolist() == ["A", "A", "B", "B"]


def test_a_slide_without_cells_is_no_region(tmp_path):
    data = annotated(tmp_path, (make_slide("A"), make_slide("B"), make_slide("C")), n_cells=2)
    assert data.uns["spatialdata_attrs"]["region"].tolist() == ["A", "B"]
    assert list(data.obs["region"].cat.categories) == ["A", "B"]


def test_a_region_of_the_users_own_stays(tmp_path):
    data = annotated(tmp_path, (make_slide("A", {"region": "cortex"}), make_slide("B", {"region": "cortex"})))
    assert set(data.obs["region"]) == {"cortex"}
    assert data.uns["spatialdata_attrs"]["region_key"] == "slide"
    assert data.uns["spatialdata_attrs"]["region"].tolist() == ["A", "B"]


def test_unique_ids_are_no_labels(tmp_path):
    slides = (make_slide("A"), make_slide("B"))
    data = annotated(tmp_path, slides, ids=[1, 2, 1, 2], unique_ids=True)
    assert data.uns["spatialdata_attrs"]["instance_key"] == "cell_id"
    assert data.obs["cell_id"].tolist() == [1, 2, 1, 2]
    assert data.obs["cell_id"].dtype == np.uint64
