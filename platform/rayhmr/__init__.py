"""Human mesh recovery on Ray: data, training, search, evaluation, prediction and serving.

Each job script in jobs/ calls the function of the same name in the module of the same name.
"""
