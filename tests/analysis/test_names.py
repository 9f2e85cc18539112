import pkgutil

from grokfast import analysis


def test_no_module_is_hidden_by_a_function_of_its_name():
    assert not {module.name for module in pkgutil.iter_modules(analysis.__path__)} & {*analysis.__all__}
