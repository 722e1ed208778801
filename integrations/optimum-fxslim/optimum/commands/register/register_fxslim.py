"""Read by `optimum-cli`: what fxslim adds to it."""

from optimum.commands.export.base import ExportCommand

from fxslim._optimum_command import FxslimCommand

REGISTER_COMMANDS = [(FxslimCommand, ExportCommand)]
