from lbe_hf.log_lines import by_layer, layer_entries


def test_layers_of_a_log_line_are_in_their_order_whatever_that_of_the_line() -> None:
    line = {f"entropy/layer_{layer:02d}": float(layer) for layer in range(112)}
    sorted_by_name = dict(sorted({**line, "entropy_mean": 9.0, "target/layer_00": 0.5}.items()))
    assert list(sorted_by_name) != [*line, "entropy_mean", "target/layer_00"]
    assert by_layer(sorted_by_name, "entropy") == list(range(112))
    assert by_layer(sorted_by_name, "target") == [0.5]
    assert by_layer({"loss": 1.0}, "entropy") == []


def test_what_is_written_is_read() -> None:
    values = [index / 7 for index in range(120)]
    line = {"loss": 1.0, **layer_entries("entropy", values), **layer_entries("flow/entropy", [9.0])}
    assert list(line)[1:3] == ["entropy/layer_00", "entropy/layer_01"]
    assert by_layer(line, "entropy") == values
