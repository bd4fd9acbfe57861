from anchorlens.cli import main

main()
